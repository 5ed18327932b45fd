"""Two devices share a model: one runs the layers below a cut, the other those above it and the head.

A plan is cut, not a device: each side is a plan of its own, with its part of the calls and with just the buffers,
weights and caches that these use, so every device runs its side as it runs a whole model. Between them goes the
residual stream, f32 [T, hidden_size], through the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.plan import Buffer, Entry, Output, Plan
from dsv3c.runtime.devices.device import CPU_FAMILIES, Device, Floats, Placement, family_of, open_device
from dsv3c.runtime.errors import BadPlacement, CannotSplit, NoCallTimes

RESIDUAL = "residual"
_BOTH = "give --gpu-layers N and --cpu-artifact OUT, made by `dsv3c compile CHECKPOINT --target x86` (or arm)"


def below(plan: Plan, layer: int) -> Plan:
    """The plan of what comes before `layer`; its entries give the residual stream as their output RESIDUAL."""

    def lower(entry: Entry) -> Entry:
        cut = entry.cuts[layer]
        outputs = MappingProxyType({RESIDUAL: Output(cut.residual, "T")})
        experts = {at: buffer for at, buffer in entry.experts.items() if at < layer}
        return replace(entry, calls=entry.calls[: cut.first], outputs=outputs, cuts=(), experts=experts)

    return _used(plan, {name: lower(entry) for name, entry in plan.entries.items() if entry.cuts})


def above(plan: Plan, layer: int) -> Plan:
    """The plan of `layer` and what comes after; its entries take the residual stream as their input RESIDUAL.

    Entries without cuts, such as multi-token prediction, belong to it as a whole.
    """
    sizes = {plan.buffers[entry.cuts[layer].residual].size for entry in plan.entries.values() if entry.cuts}
    (size,) = sizes  # T * hidden_size, in every entry
    given = len(plan.buffers)
    entries = {name: _upper(entry, layer, given) if entry.cuts else entry for name, entry in plan.entries.items()}
    return _used(replace(plan, buffers=(*plan.buffers, Buffer(RESIDUAL, "input", "float32", size))), entries)


def _upper(entry: Entry, layer: int, given: int) -> Entry:
    cut = entry.cuts[layer]
    calls = {number: entry.calls[number] for number in (*cut.kept, *range(cut.first, len(entry.calls)))}
    for number, operand in cut.readers:
        if number in calls:
            name, buffers = calls[number]
            calls[number] = name, (*buffers[:operand], given, *buffers[operand + 1 :])
    inputs = MappingProxyType({**entry.inputs, RESIDUAL: given})
    experts = {at: buffer for at, buffer in entry.experts.items() if at >= layer}
    return replace(entry, calls=tuple(calls.values()), inputs=inputs, cuts=(), experts=experts)


def _used(plan: Plan, entries: Mapping[str, Entry]) -> Plan:
    """The plan with these entries and the buffers they use."""
    used = {index for index, buffer in enumerate(plan.buffers) if buffer.kind == "input"}
    for entry in entries.values():
        used |= {index for _, buffers in entry.calls for index in buffers}
        used |= {output.buffer for output in entry.outputs.values()} | set(entry.experts.values())
    kept = sorted(used)
    place = {index: number for number, index in enumerate(kept)}
    buffers = tuple(plan.buffers[index] for index in kept)

    def moved(indices: Mapping[str, int]) -> Mapping[str, int]:
        return MappingProxyType({name: place[index] for name, index in indices.items()})

    def again(entry: Entry) -> Entry:
        calls = tuple((name, tuple(place[index] for index in buffers)) for name, buffers in entry.calls)
        outputs = {name: replace(output, buffer=place[output.buffer]) for name, output in entry.outputs.items()}
        experts = {layer: place[index] for layer, index in entry.experts.items()}
        return replace(
            entry, calls=calls, outputs=MappingProxyType(outputs), inputs=moved(entry.inputs), experts=experts
        )

    renewed = MappingProxyType({name: again(entry) for name, entry in entries.items()})
    return replace(plan, buffers=buffers, entries=renewed)


def split(artifact: Artifact, lower: Artifact, upper_layers: int) -> tuple[Artifact, Artifact]:
    """(lower side, upper side) for the last `upper_layers` layers on `artifact` and the rest on `lower`.

    The upper side's plan is the one for a session: it has the entries that both can run. Raises CannotSplit.
    """
    _require_alike(artifact, lower)
    if _expert_layers(artifact) != _expert_layers(lower):
        artifact, lower = _without_experts(artifact), _without_experts(lower)
    cut = layer_count(artifact) - upper_layers
    first, second = below(lower.plan, cut), above(artifact.plan, cut)
    whole = {name for name, entry in artifact.plan.entries.items() if not entry.cuts}
    entries = {name: entry for name, entry in second.entries.items() if name in whole or name in first.entries}
    # The work of a step would be that of one side only.
    second = replace(second, entries=MappingProxyType(entries), costs=None)
    parts = (lower.identity, f"the last {upper_layers} layers")
    return replace(lower, plan=first), replace(artifact, plan=second, parts=parts)


def layer_count(artifact: Artifact) -> int:
    """Layers that can be shared out; 0 where the artifact's entries cannot be cut."""
    return min((len(entry.cuts) for entry in artifact.plan.entries.values() if entry.cuts), default=0)


def _expert_layers(artifact: Artifact) -> set[int]:
    """Layers of which the plan says which experts tokens visit."""
    return {layer for entry in artifact.plan.entries.values() for layer in entry.experts}


def _without_experts(artifact: Artifact) -> Artifact:
    entries = {name: replace(entry, experts={}) for name, entry in artifact.plan.entries.items()}
    return replace(artifact, plan=replace(artifact.plan, entries=MappingProxyType(entries)))


def _require_alike(artifact: Artifact, lower: Artifact) -> None:
    for side in (artifact, lower):
        if not layer_count(side):
            reason = "its plan says of no place to cut: compile it again, or its layers share more than the residual"
            raise CannotSplit(path=side.folder, reason=reason)
    sources = [side.manifest.content.get("source", {}).get("files") for side in (artifact, lower)]
    if sources[0] != sources[1]:
        raise CannotSplit(path=lower.folder, reason=f"it was made from another checkpoint than {artifact.folder}")
    if layer_count(artifact) != layer_count(lower):
        raise CannotSplit(path=lower.folder, reason=f"it has other layers than {artifact.folder}")
    for name in ("bounds", "page_size"):
        here, there = getattr(artifact.plan, name), getattr(lower.plan, name)
        if here != there:
            raise CannotSplit(path=lower.folder, reason=f"its {name} are {there}, those of {artifact.folder} {here}")


class SplitDevice:
    """Implements `Device` over two of them: `lower` runs first, on the same slots."""

    def __init__(self, lower: Device, upper: Device, plan: Plan) -> None:
        """plan: of the upper side."""
        self._lower, self._upper = lower, upper
        self.slots = upper.slots
        self._width = next(buffer.size for buffer in plan.buffers if buffer.name == RESIDUAL) // plan.bounds.T
        self._shared = {name for name, entry in plan.entries.items() if RESIDUAL in entry.inputs}
        # What only one side has, such as the hidden states for multi-token prediction, is written to it directly.
        self.inputs: Mapping[str, NDArray[Any]] = {**upper.inputs, **lower.inputs}
        self._copies: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (array, upper.inputs[name]) for name, array in lower.inputs.items() if name in upper.inputs
        ]

    @property
    def forks(self) -> bool:
        return self._lower.forks and self._upper.forks

    @property
    def prefill_min_tokens(self) -> int | None:
        known = [device.prefill_min_tokens for device in (self._lower, self._upper)]
        return max((tokens for tokens in known if tokens is not None), default=None)

    def run(self, entry: str) -> None:
        for source, target in self._copies:
            np.copyto(target, source)
        if entry in self._shared:
            self._lower.run(entry)
            size = int(self.inputs["control"][0]) * self._width
            self._upper.inputs[RESIDUAL][:size] = self._lower.output(entry, RESIDUAL)[:size]
        self._upper.run(entry)

    def run_timed(self, entry: str) -> NDArray[np.float64]:
        raise NoCallTimes(what="a model on two devices", instead="leave out --per-op, or measure each device alone")

    def output(self, entry: str, name: str) -> Floats:
        return self._upper.output(entry, name)

    def experts(self, entry: str) -> Mapping[int, NDArray[np.int32]]:
        below = self._lower.experts(entry) if entry in self._shared else {}
        return {**below, **self._upper.experts(entry)}

    def copy_slots(self, source: int, target: int, count: int) -> None:
        for device in (self._lower, self._upper):
            device.copy_slots(source, target, count)

    def read_slots(self, start: int, count: int) -> Mapping[str, NDArray[Any]]:
        return {**self._lower.read_slots(start, count), **self._upper.read_slots(start, count)}

    def write_slots(self, start: int, rows: Mapping[str, NDArray[Any]]) -> None:
        for device in (self._lower, self._upper):
            device.write_slots(start, rows)

    def report(self) -> dict[str, Any]:
        sides = {"lower": self._lower.report(), "upper": self._upper.report()}
        sizes = ("weight_bytes", "arena_bytes", "cache_bytes")
        totals = {name: sum(int(side.get(name, 0)) for side in sides.values()) for name in sizes}
        return {"device": "split", **sides, **totals, "cache_slots": self.slots}

    def close(self) -> None:
        self.inputs = {}
        self._copies = []
        self._lower.close()
        self._upper.close()


def place(artifact: Artifact, slots: int, placement: Placement) -> tuple[Artifact, Device]:
    """The artifact as a session runs it, and its open device: one of its own, or two that share its layers.

    Raises BadPlacement, CannotSplit, and what opening artifacts and devices raises.
    """
    layers = placement.gpu_layers
    if layers is None and placement.cpu_artifact is None:
        return artifact, open_device(artifact, slots, placement.threads, placement.device, placement.numa)
    if layers is None:
        raise BadPlacement(reason="--cpu-artifact is given, but not how many layers the GPU takes", instead=_BOTH)
    if family_of(artifact) in CPU_FAMILIES:
        instead = "give an artifact for a GPU, and the one for the CPU with --cpu-artifact"
        raise BadPlacement(reason=f"the artifact {artifact.folder} runs on the CPU as a whole", instead=instead)
    if layers >= layer_count(artifact) > 0:
        return artifact, open_device(artifact, slots, placement.threads, placement.device, placement.numa)
    if placement.cpu_artifact is None:
        raise BadPlacement(reason=f"the model has {layer_count(artifact)} layers, who runs the others?", instead=_BOTH)
    lower = Artifact.open(placement.cpu_artifact)
    if family_of(lower) not in CPU_FAMILIES:
        name = lower.manifest.target.name
        raise BadPlacement(reason=f"the artifact {lower.folder} is for {name}, not for a CPU", instead=_BOTH)
    if layers == 0:
        _require_alike(artifact, lower)
        return lower, open_device(lower, slots, placement.threads, numa=placement.numa)
    return open_split(
        artifact,
        lower,
        layers,
        lambda side: open_device(side, slots, placement.threads, numa=placement.numa),
        lambda side: open_device(side, slots, None, placement.device),
    )


def open_split(
    artifact: Artifact,
    lower: Artifact,
    upper_layers: int,
    open_lower: Callable[[Artifact], Device],
    open_upper: Callable[[Artifact], Device],
) -> tuple[Artifact, Device]:
    """The upper side of the artifact, for a session, and the device that runs both sides. Nothing stays open when one
    of them cannot be opened."""
    first, second = split(artifact, lower, upper_layers)
    device = open_lower(first)
    try:
        return second, SplitDevice(device, open_upper(second), second.plan)
    except BaseException:
        device.close()
        raise
