"""The plan that targets with kernels of our own emit: calls over flat buffers, shared by all entries.

A target says how an operation becomes kernel calls; what the plan holds besides is the same for all of them: inputs,
weights by recipe, results at their places in one arena.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dsv3c.compiler.core.caches import SLOTS, cache_of, is_cache
from dsv3c.compiler.core.chosen import chosen_experts, computed
from dsv3c.compiler.core.cuts import GraphCut, cuts
from dsv3c.compiler.core.ir import Graph, Value, is_weight
from dsv3c.compiler.core.storage import components, memory_owner, tensor_name
from dsv3c.compiler.core.target import EntryGraph, Planned
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.runtime.artifact import plan
from dsv3c.runtime.artifact.costs import Cost
from dsv3c.runtime.artifact.plan import Buffer, Call
from dsv3c.targets.calls.operands import Operand, operand_bytes
from dsv3c.targets.calls.recipes import Recipes

Bounds = Mapping[str, int]


class WeightPart(NamedTuple):
    """An operand that is a run of a weight, from unit `first` on; all components of the weight have `units` units."""

    first: int
    units: int


@dataclass(frozen=True)
class KernelCall:
    """spec: names the kernel. roles: the value of each operand role; components of a quantised value share its role
    ("w" stands for w.data, w.scale, w.zero). parts: the roles whose operands are a part of their weight."""

    spec: Any
    roles: Mapping[str, Value]
    parts: Mapping[str, WeightPart] = field(default_factory=dict)


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
class PlanBuilder:
    """The plan under construction: buffers are shared by all entries, kernels by all calls with the same spec.

    arena_bytes: end of the last byte that any result or scratch uses.
    """

    bounds: Bounds
    target: Calls
    buffers: list[Buffer] = field(default_factory=list)
    graphs: dict[str, EntryGraph] = field(default_factory=dict)
    entries: dict[str, plan.Entry] = field(default_factory=dict)
    arena_bytes: int = 0
    kernels: dict[Any, str] = field(default_factory=dict)
    recipes: Recipes = field(default_factory=Recipes)
    _indices: dict[str, int] = field(default_factory=dict)
    _weights: dict[Value, bool] = field(default_factory=dict)  # answers of is_weight

    def add(self, graphs: Mapping[str, EntryGraph]) -> None:
        """Add an entry for each of the graphs."""
        for name, size in plan.Bounds(**self.bounds).step_inputs().items():
            self.input(name, "int32", size)
        self.graphs |= graphs
        entries = {name: self._entry(name, entry) for name, entry in graphs.items()}
        # A sequence goes through all of them: what keeps the layers of one together does so for all.
        if not all(entry.cuts for entry in entries.values() if not entry.inputs):
            entries = {name: replace(entry, cuts=()) for name, entry in entries.items()}
        self.entries |= entries
        self.arena_bytes = max(self.arena_bytes, self._last_byte_of(graphs.values()))

    def planned(self, cost: Callable[[Any], Cost | None]) -> Planned:
        """What was added. cost: of a kernel by its spec, None where it is nothing but its operands."""
        costs = {name: stated for spec, name in self.kernels.items() if (stated := cost(spec)) is not None}
        sizes = self.bounds, self.arena_bytes, tuple(self.buffers)
        return Planned(self.graphs, *sizes, self.entries, self.recipes.by_name, self.kernels, costs)

    def call(self, value: Value) -> list[Call]:
        """Each call for a value of the graph."""
        calls = []
        for lowered in self.target.lower(value, self.bounds):
            indices = [self._buffer(value, lowered, operand) for operand in self.target.operands(lowered.spec)]
            calls.append((self._kernel(value.op, lowered.spec), tuple(indices)))
        return calls

    def added_call(self, op: str, spec: Any, buffers: Sequence[int]) -> Call:
        """A call that no value of a graph stands for, of a kernel named after `op`."""
        return self._kernel(op, spec), tuple(buffers)

    def behind(self, element: str, size: int, offset: int) -> int:
        """A buffer at an offset of the arena. Where no value has it, the caller enlarges the arena."""
        dtype = _dtype_name(element)
        name = f"arena+{offset}:{dtype}[{size}]"
        return self._add(Buffer(name, "arena", dtype, size, offset))

    def input(self, name: str, dtype: str, size: int) -> int:
        return self._add(Buffer(name, "input", dtype, size))

    def arena(self, value: Value, operand: Operand, component: int) -> int:
        """The buffer of one component of a result; component -1 is the operation's scratch."""
        offset = _arena_offsets(memory_owner(value) if component >= 0 else value)[component]
        return self.behind(operand.dtype, int(operand.size or 0), offset)

    def _last_byte_of(self, entries: Iterable[EntryGraph]) -> int:
        planned = (value for entry in entries for value in entry.graph.values() if "arena" in value.attrs)
        return max(self._last_byte(value) for value in planned)

    def _entry(self, name: str, entry: EntryGraph) -> plan.Entry:
        memo: dict[Value, bool] = {}
        called = [
            value
            for value in entry.graph.values()
            if not is_weight(value, memo) and value.op not in ("input", "reshape", "slice")
        ]
        calls: list[Call] = []
        numbers: dict[Value, list[int]] = {}
        for value in called:
            made = self.call(value)
            numbers[value] = list(range(len(calls), len(calls) + len(made)))
            calls += made
        # In this order: buffers are numbered as they are first asked for.
        outputs = self._outputs(entry.graph)
        found = tuple(self._cut(cut, numbers) for cut in cuts(entry.graph, numbers))
        inputs = self._inputs(entry.graph)
        return plan.Entry(
            name,
            tuple(calls),
            outputs,
            inputs,
            min_tokens=entry.min_tokens,
            max_tokens=self.bounds["T"],
            cuts=found,
            experts={layer: self._whole(value, "experts") for layer, value in chosen_experts(entry.graph).items()},
            max_context=entry.max_context,
        )

    def _outputs(self, graph: Graph) -> dict[str, plan.Output]:
        """The results that steps read: no caches, and not which experts were chosen."""
        results = ((name, value) for name, value in computed(graph) if not is_cache(memory_owner(value)))
        return {name: plan.Output(self._whole(value, name), str(value.shape[0])) for name, value in results}

    def _inputs(self, graph: Graph) -> dict[str, int]:
        """What an entry is given besides the inputs that all have."""
        hidden = next((value for value in graph.values() if value.attrs.get("name") == "hidden"), None)
        if hidden is None:
            return {}
        return {"hidden": self.input("hidden", "float32", components(hidden.type, self.bounds)[0].size)}

    def _whole(self, value: Value, role: str) -> int:
        """The buffer of a result that is one array."""
        return self.arena(value, Operand(role, value.dtype, components(value.type, self.bounds)[0].size), 0)

    def _cut(self, cut: GraphCut, numbers: Mapping[Value, list[int]]) -> plan.Cut:
        readers = tuple(
            (number, position)
            for value, calls in numbers.items()
            if cut.residual in map(memory_owner, value.inputs)
            for number, lowered in zip(calls, self.target.lower(value, self.bounds), strict=True)
            for position, operand in enumerate(self.target.operands(lowered.spec))
            if (source := lowered.roles.get(operand.role.partition(".")[0])) is not None
            and memory_owner(source) == cut.residual
        )
        return plan.Cut(cut.first, cut.kept, self._whole(cut.residual, "residual"), readers)

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
        stored = components(source.type, {**self.bounds, SLOTS: 1})
        component = next(i for i, item in enumerate(stored) if item.role == (part or "data"))
        if is_weight(source, self._weights):
            return self._weight(source, component, operand, lowered.parts.get(role, WeightPart(0, 1)))
        return self.arena(source, operand, component)

    def _input_buffer(self, owner: Value, operand: Operand) -> int:
        name = str(owner.attrs["name"])
        if is_cache(owner):
            cache = cache_of(owner)
            buffer = Buffer(name, "cache", cache.dtype, 0, width=cache.stored_width, codes=cache.codes)
            index = self._add(buffer)
            assert self.buffers[index] == buffer, f"{name} is another cache in another entry"
            return index
        return self.input(name, _dtype_name(operand.dtype), int(operand.size or 0))

    def _weight(self, recipe: Value, component: int, operand: Operand, part: WeightPart) -> int:
        stored = components(recipe.type, {})[component]
        tensor = tensor_name(self.recipes.name(recipe), stored)
        dtype, size = _dtype_name(operand.dtype), int(operand.size or 0)
        offset = stored.nbytes // part.units * part.first
        if size == stored.size:
            return self._add(Buffer(tensor, "weight", dtype, size, tensor=tensor))
        return self._add(Buffer(f"{tensor}+{offset}", "weight", dtype, size, offset, tensor, parted=True))

    def _add(self, buffer: Buffer) -> int:
        if buffer.name not in self._indices:
            self._indices[buffer.name] = len(self.buffers)
            self.buffers.append(buffer)
        return self._indices[buffer.name]

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


def _arena_offsets(value: Value) -> list[int]:
    """plan-memory's note on a result: the offset of each component, then of the scratch if there is any."""
    offsets = value.attrs["arena"]
    assert isinstance(offsets, tuple)
    return [offset for offset in offsets if isinstance(offset, int)]


def _dtype_name(dtype: str) -> str:
    """The name in plan.json."""
    return str(NUMPY_DTYPES[dtype].name)
