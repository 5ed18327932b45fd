"""The folder of an adapter, as PEFT writes it: which weights of a model it changes, and how.

Of a linear layer `M.lora_A.weight` [r, K] and `M.lora_B.weight` [N, r], of an embedding `M.lora_embedding_A` [r, V] and
`M.lora_embedding_B` [D, r], a name of the adapter behind the A or B or none; all of it behind `base_model.model.`. What
`modules_to_save` names is there whole, under its own name. Of stacked experts (PEFT's `target_parameters`) see
`experts.py`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsv3c.compiler.checkpoint.catalog import LogicalTensor
from dsv3c.compiler.checkpoint.files import exists, quote, some
from dsv3c.compiler.checkpoint.lora import experts
from dsv3c.compiler.checkpoint.lora.config import CONFIG, AdapterConfig
from dsv3c.compiler.checkpoint.lora.delta import Delta, Factor
from dsv3c.compiler.checkpoint.lora.errors import (
    AdapterPairError,
    AdapterTargetError,
    AdapterTensorError,
    AdapterUnsupportedError,
    EmptyAdapterError,
    NoAdapterError,
    PickledAdapterError,
)
from dsv3c.compiler.checkpoint.quantised.weight import Readable, tensor_of
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.checkpoint.stored import StoredTensor, StoredWeight
from dsv3c.compiler.options import Lora

WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_NEAREST = 3
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+?)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.weight)?"
)
_WHOLE = re.compile(r"(?P<module>.+?)(?:\.modules_to_save(?:\.[^.]+)?|\.base_layer)?\.(?P<parameter>[^.]+)")
_EXPERT = re.compile(r"(?P<before>.+\.experts)\.(?P<index>\d{1,6})\.(?P<after>.+)")
_FOREIGN = {
    "lora_magnitude_vector": "DoRA scales rows of the merged weight too",
    ".bias": "the model has no biases",
    "token_adapter.": "trained rows of an embedding are no LoRA",
}

Entries = Mapping[str, LogicalTensor]
Named = Callable[[str], str]
Place = tuple[str, int]  # a logical name, and which of its parts


@dataclass(frozen=True)
class Adapter:
    """An adapter that was held against a model.

    whole: weights that it has instead of the model's. deltas: what is added to weights, these among them.
    """

    given: Lora
    config: AdapterConfig
    whole: Mapping[Place, Readable]
    deltas: Mapping[Place, Delta]

    @property
    def name(self) -> str:
        return self.given.name

    @property
    def files(self) -> tuple[Path, ...]:
        return self.given.path / CONFIG, self.given.path / WEIGHTS

    @property
    def places(self) -> tuple[Place, ...]:
        """What it changes."""
        return tuple(dict.fromkeys((*self.whole, *self.deltas)))

    @staticmethod
    def open(given: Lora, entries: Entries, named: Named) -> Adapter:
        """entries: the tensors of the model. named: what these call a module or tensor of the checkpoint, whose names
        the adapter may have as well. Reads headers alone.

        Raises an AdapterError for what is no adapter of this model that can be merged; as for a checkpoint's files, a
        CheckpointError for a file or a tensor that is damaged.
        """
        folder = given.path
        if not folder.is_dir():
            raise NoAdapterError(path=folder, reason="it is not a folder" if exists(folder) else "it does not exist")
        if not exists(folder / CONFIG):
            raise NoAdapterError(path=folder, reason=f"it has no {CONFIG}")
        config = AdapterConfig.read(folder)
        if not exists(folder / WEIGHTS):
            if exists(folder / _PICKLED):
                raise PickledAdapterError(path=folder)
            raise NoAdapterError(path=folder, reason=f"it has no {WEIGHTS}")
        file = SafetensorsFile(folder / WEIGHTS)
        if not file.tensors:
            raise EmptyAdapterError(path=file.path)
        reading = _Reading(file, config, given.scale, entries, named)
        return Adapter(given, config, reading.whole, reading.deltas)


@dataclass
class _Pair:
    """The two factors of a module. given: its name in the file. kind: `embedding_`, or nothing."""

    given: str
    kind: str
    adapter: str | None
    sides: dict[str, StoredTensor] = field(default_factory=dict)


class _Reading:
    """Finds for each tensor of the file what it is of the model."""

    def __init__(
        self, file: SafetensorsFile, config: AdapterConfig, scale: float, entries: Entries, named: Named
    ) -> None:
        self.path, self.config, self.scale, self.entries, self.named = file.path, config, scale, entries, named
        self.stored = {name: StoredTensor(file, info) for name, info in file.tensors.items()}
        self.whole: dict[Place, Readable] = {}
        self.deltas: dict[Place, Delta] = {}
        pairs: dict[str, _Pair] = {}
        rest: list[str] = []
        for name, tensor in self.stored.items():
            plain = name.removeprefix(_PREFIX)
            if found := _FACTOR.fullmatch(plain):
                self._sort(pairs, found, tensor)
            elif not self._take_whole(plain, name):
                rest.append(name)
        self._refuse(rest)
        for module, pair in pairs.items():
            for place, delta in self._delta(module, pair):
                if place in self.deltas:
                    raise self._twice(f"{module}.lora_A")
                self.deltas[place] = delta

    def _sort(self, pairs: dict[str, _Pair], found: re.Match[str], tensor: StoredTensor) -> None:
        module = found["module"]
        pair = pairs.setdefault(self.named(module), _Pair(module, found["kind"] or "", found["adapter"]))
        if (pair.kind, pair.adapter) != (found["kind"] or "", found["adapter"]) or found["side"] in pair.sides:
            raise self._twice(found[0])
        pair.sides[found["side"]] = tensor

    def _twice(self, what: str) -> AdapterUnsupportedError:
        reason = "it is not the only one for its weight: an adapter is to be one"
        return AdapterUnsupportedError(path=self.path, what=quote(what), reason=reason)

    def _refuse(self, rest: list[str]) -> None:
        """Raises for tensors that could not be placed."""
        for part, reason in _FOREIGN.items():
            foreign = next((name for name in rest if part in name), None)
            if foreign is not None:
                raise AdapterUnsupportedError(path=self.path, what=quote(foreign), reason=reason)
        strange = [name for name in rest if not name.endswith(".weight")]
        if strange:
            raise AdapterTensorError(path=self.path, count=len(strange), names=some(strange))
        if rest:
            raise self._no_target(self.named(rest[0].removeprefix(_PREFIX)), "weight")

    # --- Whole weights ------------------------------------------------------------------------------------------------

    def _take_whole(self, plain: str, name: str) -> bool:
        """Whether it is a weight of the model, whose place it then takes. Raises TensorShapeError, TensorDtypeError."""
        found = _WHOLE.fullmatch(plain)
        if found is None:
            return False
        module, _, parameter = self.named(f"{found['module']}.{found['parameter']}").rpartition(".")
        place = self._place(f"{module}.{parameter}")
        if place is None:
            return self._take_stack(module, parameter, name)
        shape = self.entries[place[0]].parts[place[1]].shape
        tensor = tensor_of(self.stored, name, [shape])
        assert tensor is not None
        self.whole[place] = StoredWeight(tensor)
        return True

    def _take_stack(self, module: str, parameter: str, name: str) -> bool:
        stack = next((each for each in experts.stacks(module, self.entries) if each.name == parameter), None)
        if stack is None:
            return False
        tensor = tensor_of(self.stored, name, [(stack.count, stack.rows, stack.columns)])
        assert tensor is not None
        for projection, first, last in stack.parts:
            for index in range(stack.count):
                self.whole[projection, index] = StoredWeight(tensor).cut(index, (first, last))
        return True

    # --- Factors ------------------------------------------------------------------------------------------------------

    def _delta(self, module: str, pair: _Pair) -> Iterator[tuple[Place, Delta]]:
        """Raises AdapterPairError, AdapterTargetError, AdapterRankError, TensorShapeError, TensorDtypeError."""
        if len(pair.sides) == 1:
            ((side, tensor),) = pair.sides.items()
            missing = f"lora_{pair.kind}{'B' if side == 'A' else 'A'}"
            raise AdapterPairError(path=self.path, tensor=quote(tensor.info.name), missing=missing)
        stacks = experts.stacks(module, self.entries)
        if stacks:
            yield from experts.deltas(stacks, pair.sides["A"], pair.sides["B"], self.config, self.scale)
            return
        place = self._place(f"{module}.weight")
        shape = () if place is None else self.entries[place[0]].parts[place[1]].shape
        if place is None or len(shape) != 2:
            raise self._no_target(f"{module}.weight", "matrix")
        key = self.config.key_of(pair.given)
        rank, scale = self.config.rank_of(key), self.scale * self.config.scale_of(key)
        rows, columns = shape[::-1] if pair.kind else shape
        a = experts.checked(pair.sides["A"], 0, (rank, columns))
        b = experts.checked(pair.sides["B"], 1, (rows, rank))
        if pair.kind:  # an embedding's factors give its transpose
            yield place, Delta(Factor(a, turned=True), Factor(b, turned=True), scale)
        else:
            yield place, Delta(Factor(b), Factor(a), scale)

    def _place(self, name: str) -> Place | None:
        """Where a weight is among the logical tensors."""
        entry = self.entries.get(name)
        if entry is not None:
            return None if entry.stacked else (name, 0)
        found = _EXPERT.fullmatch(name)
        stack = self.entries.get(f"{found['before']}.*.{found['after']}") if found else None
        index = int(found["index"]) if found else 0
        return (
            (f"{found['before']}.*.{found['after']}", index) if found and stack and index < len(stack.parts) else None
        )

    def _no_target(self, name: str, kind: str) -> AdapterTargetError:
        known = [each for each, entry in self.entries.items() if kind == "weight" or len(entry.shape) > 1]
        nearest = difflib.get_close_matches(name[:200], known, _NEAREST, cutoff=0)
        return AdapterTargetError(path=self.path, name=quote(name), kind=kind, nearest=", ".join(nearest))
