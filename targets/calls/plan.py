"""The plan that targets with kernels of our own emit: calls over flat buffers, shared by all entries.

A target says how an operation becomes kernel calls; what the plan holds besides is the same for all of them: inputs,
weights by recipe, results at their places in one arena.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dsv3c.compiler.core.cuts import Cut, cuts
from dsv3c.compiler.core.ir import Value, is_weight, topological_order
from dsv3c.compiler.core.storage import components, memory_owner, tensor_name
from dsv3c.compiler.core.target import Entry
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.targets.calls.operands import Operand, operand_bytes

STEP_INPUTS = ("tokens", "positions", "sequence", "page_table", "rows")
_DIMS = {"page_table": "S*P", "rows": "R"}
Bounds = Mapping[str, int]
Buffer = dict[str, Any]


class Part(NamedTuple):
    """An operand that is a run of a weight, from unit `first` on; all components of the weight have `units` units."""

    first: int
    units: int


@dataclass(frozen=True)
class KernelCall:
    """spec: names the kernel. roles: the value of each operand role; components of a quantised value share its role
    ("w" stands for w.data, w.scale, w.zero). parts: the roles whose operands are a part of their weight."""

    spec: Any
    roles: Mapping[str, Value]
    parts: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """How a target calls its kernels. lower: the calls that a value of phase "kernel" becomes, in order; those of one
    value share its scratch. operands: the arguments of a kernel by its spec."""

    lower: Callable[[Value, Bounds], Sequence[KernelCall]]
    operands: Callable[[Any], Sequence[Operand]]

    def scratch_bytes(self, value: Value, bounds: Bounds) -> int:
        """Bytes of the largest scratch operand that a call for `value` has, 0 without one."""
        return max(
            operand_bytes(operand) if operand.role == "scratch" else 0
            for call in self.lower(value, bounds)
            for operand in self.operands(call.spec)
        )


@dataclass
class Plan:
    """The plan under construction: buffers are shared by all entries, kernels by all calls with the same spec."""

    bounds: Bounds
    target: Calls
    buffers: list[Buffer] = field(default_factory=list)
    kernels: dict[Any, str] = field(default_factory=dict)
    recipes: dict[str, Value] = field(default_factory=dict)
    _indices: dict[str, int] = field(default_factory=dict)
    _recipe_names: dict[Value, str] = field(default_factory=dict)
    _weights: dict[Value, bool] = field(default_factory=dict)  # answers of is_weight

    def content(self, entries: Mapping[str, Entry]) -> dict[str, Any]:
        """Adds all entries; what plan.json says of them."""
        for name in STEP_INPUTS:
            size = 1
            for dim in _DIMS.get(name, "T").split("*"):
                size *= self.bounds[dim]
            self.input(name, "int32", size)
        listed = {name: self._entry(entry) for name, entry in entries.items()}
        return {"arena_bytes": self.arena_bytes(entries), "buffers": self.buffers, "entries": listed}

    def call(self, value: Value) -> list[list[Any]]:
        """[kernel name, [buffer indices]] of each call for a value of the graph."""
        calls = []
        for lowered in self.target.lower(value, self.bounds):
            indices = [self._buffer(value, lowered, operand) for operand in self.target.operands(lowered.spec)]
            calls.append([self._kernel(value.op, lowered.spec), indices])
        return calls

    def added_call(self, op: str, spec: Any, buffers: Sequence[int]) -> list[Any]:
        """A call that no value of a graph stands for, of a kernel named after `op`."""
        return [self._kernel(op, spec), list(buffers)]

    def behind(self, element: str, size: int, offset: int) -> int:
        """A buffer at an offset of the arena that no value has, which the caller enlarges."""
        dtype = _dtype_name(element)
        name = f"arena+{offset}:{dtype}[{size}]"
        return self._add({"name": name, "kind": "arena", "dtype": dtype, "size": size, "offset": offset})

    def input(self, name: str, dtype: str, size: int) -> int:
        return self._add({"name": name, "kind": "input", "dtype": dtype, "size": size})

    def arena(self, value: Value, operand: Operand, component: int) -> int:
        """The buffer of one component of a result; component -1 is the operation's scratch."""
        offset = _arena_offsets(memory_owner(value) if component >= 0 else value)[component]
        dtype = _dtype_name(operand.dtype)
        name = f"arena+{offset}:{dtype}[{operand.size}]"
        return self._add({"name": name, "kind": "arena", "dtype": dtype, "size": operand.size, "offset": offset})

    def arena_bytes(self, entries: Mapping[str, Entry]) -> int:
        """End of the last byte that any result or scratch uses."""
        planned = (value for entry in entries.values() for value in entry.graph.values() if "arena" in value.attrs)
        return max(self._last_byte(value) for value in planned)

    def _entry(self, entry: Entry) -> dict[str, Any]:
        memo: dict[Value, bool] = {}
        called = [
            value
            for value in entry.graph.values()
            if not is_weight(value, memo) and value.op not in ("input", "reshape", "slice")
        ]
        calls: list[list[Any]] = []
        numbers: dict[Value, list[int]] = {}
        for value in called:
            made = self.call(value)
            numbers[value] = list(range(len(calls), len(calls) + len(made)))
            calls += made
        outputs = {}
        for name, value in entry.graph.results:
            if not name.startswith("cache."):
                size = components(value.type, self.bounds)[0].size
                outputs[name] = self.arena(value, Operand(name, value.dtype, size), 0)
        described = {"calls": calls, "outputs": outputs, "min_tokens": entry.min_tokens, "max_tokens": self.bounds["T"]}
        if found := cuts(entry.graph, numbers):
            described |= {"cuts": [self._cut(cut, numbers) for cut in found]}
        hidden = next((value for value in entry.graph.values() if value.attrs.get("name") == "hidden"), None)
        if hidden is None:
            return described
        size = components(hidden.type, self.bounds)[0].size
        return described | {"inputs": {"hidden": self.input("hidden", "float32", size)}}

    def _cut(self, cut: Cut, numbers: Mapping[Value, list[int]]) -> dict[str, Any]:
        """A cut in plan.json. residual: its buffer. readers: [call, operand] above the cut that read it."""
        size = components(cut.residual.type, self.bounds)[0].size
        readers = [
            [number, position]
            for value, calls in numbers.items()
            if cut.residual in map(memory_owner, value.inputs)
            for number, lowered in zip(calls, self.target.lower(value, self.bounds), strict=True)
            for position, operand in enumerate(self.target.operands(lowered.spec))
            if (source := lowered.roles.get(operand.role.partition(".")[0])) is not None
            and memory_owner(source) == cut.residual
        ]
        residual = self.arena(cut.residual, Operand("residual", cut.residual.dtype, size), 0)
        return {"first": cut.first, "kept": list(cut.kept), "residual": residual, "readers": readers}

    def _buffer(self, value: Value, lowered: KernelCall, operand: Operand) -> int:
        role, _, part = operand.role.partition(".")
        if role == "control":
            return self.input("control", "int32", int(operand.size or 0))
        if role == "scratch":
            return self.arena(value, operand, -1)
        source = lowered.roles[role]
        owner = memory_owner(source)
        if owner.op == "input":
            return self._input_buffer(owner, operand)
        stored = components(source.type, {**self.bounds, "N": 1})
        component = next(i for i, item in enumerate(stored) if item.role == (part or "data"))
        if is_weight(source, self._weights):
            return self._weight(source, component, operand, lowered.parts.get(role, Part(0, 1)))
        return self.arena(source, operand, component)

    def _input_buffer(self, owner: Value, operand: Operand) -> int:
        name = str(owner.attrs["name"])
        if operand.size is None:
            return self._add({"name": name, "kind": "cache"})
        return self.input(name, _dtype_name(operand.dtype), operand.size)

    def _weight(self, recipe: Value, component: int, operand: Operand, part: Part) -> int:
        stored = components(recipe.type, {})[component]
        tensor = tensor_name(self._recipe_name(recipe), stored)
        described = {"kind": "weight", "dtype": _dtype_name(operand.dtype), "size": operand.size, "tensor": tensor}
        offset = stored.nbytes // part.units * part.first
        if operand.size == stored.size:
            return self._add({"name": tensor, **described})
        return self._add({"name": f"{tensor}+{offset}", **described, "offset": offset})

    def _recipe_name(self, recipe: Value) -> str:
        """The checkpoint names in the recipe, brought together; a number behind it when another recipe has the same."""
        if recipe not in self._recipe_names:
            leaves = [str(leaf.attrs["name"]) for leaf in topological_order([recipe]) if leaf.op == "param"]
            base = joined_name(leaves) if leaves else "constant"
            name, count = base, 1
            while name in self.recipes:
                count += 1
                name = f"{base}~{count}"
            self.recipes[name] = recipe
            self._recipe_names[recipe] = name
        return self._recipe_names[recipe]

    def _add(self, buffer: Buffer) -> int:
        if buffer["name"] not in self._indices:
            self._indices[buffer["name"]] = len(self.buffers)
            self.buffers.append(buffer)
        return self._indices[buffer["name"]]

    def _kernel(self, op: str, spec: Any) -> str:
        if spec not in self.kernels:
            number = sum(name.startswith(f"{op}_") for name in self.kernels.values())
            self.kernels[spec] = f"{op}_{number}"
        return self.kernels[spec]

    def _last_byte(self, value: Value) -> int:
        offsets = _arena_offsets(value)
        sizes = [component.nbytes for component in components(value.type, self.bounds)]
        if len(offsets) > len(sizes):
            sizes.append(self.target.scratch_bytes(value, self.bounds))
        return max(at + size for at, size in zip(offsets, sizes, strict=True))


def joined_name(names: list[str]) -> str:
    """One name for tensors used together: model.layers.0.mlp.{gate_proj,up_proj}.weight."""
    names = list(dict.fromkeys(names))
    parts = [name.split(".") for name in names]
    head = 0
    while all(len(part) > head + 1 and part[head] == parts[0][head] for part in parts):
        head += 1
    tail = 0
    while all(len(part) > head + tail + 1 and part[-1 - tail] == parts[0][-1 - tail] for part in parts):
        tail += 1
    if len(parts) == 1:
        return names[0]
    middle = ",".join(".".join(part[head : len(part) - tail]) for part in parts)
    ends = parts[0][len(parts[0]) - tail :] if tail else []
    return ".".join([*parts[0][:head], "{" + middle + "}", *ends])


def _arena_offsets(value: Value) -> list[int]:
    """plan-memory's note on a result: the offset of each component, then of the scratch if there is any."""
    offsets = value.attrs["arena"]
    assert isinstance(offsets, tuple)
    return [offset for offset in offsets if isinstance(offset, int)]


def _dtype_name(dtype: str) -> str:
    """The name in plan.json."""
    return str(NUMPY_DTYPES[dtype].name)
