"""From planned graphs to a plan of kernel calls over flat buffers, and the kernels it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3c.compiler.crossing import materialize_from
from dsv3c.compiler.ir import Value, is_weight, topological_order
from dsv3c.compiler.quant import NUMPY_DTYPES
from dsv3c.compiler.storage import components, memory_owner, tensor_name
from dsv3c.compiler.target import Emission, Entry
from dsv3c.targets.cpu.costs import cost
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build, operands
from dsv3c.targets.cpu.kernels.frame import Operand
from dsv3c.targets.cpu.library import build_library
from dsv3c.targets.cpu.lower import KernelCall, lower
from dsv3c.targets.cpu.native import write_native
from dsv3c.targets.cpu.relax_module import write_modules

STEP_INPUTS = ("tokens", "positions", "sequence", "page_table", "rows")
Buffer = dict[str, Any]


@dataclass
class _Plan:
    """The plan under construction: buffers are shared by all entries, kernels by all calls with the same spec."""

    bounds: Mapping[str, int]
    buffers: list[Buffer] = field(default_factory=list)
    kernels: dict[Any, str] = field(default_factory=dict)
    recipes: dict[str, Value] = field(default_factory=dict)
    _indices: dict[str, int] = field(default_factory=dict)
    _recipe_names: dict[Value, str] = field(default_factory=dict)
    _weights: dict[Value, bool] = field(default_factory=dict)  # answers of is_weight

    def call(self, value: Value) -> list[Any]:
        """[kernel name, [buffer indices]] for a value of the graph."""
        lowered = lower(value, self.bounds)
        indices = [self._buffer(value, lowered, operand) for operand in operands(lowered.spec)]
        return [self._kernel(value.op, lowered.spec), indices]

    def input(self, name: str, dtype: str, size: int) -> int:
        return self._add({"name": name, "kind": "input", "dtype": dtype, "size": size})

    def arena(self, value: Value, operand: Operand, component: int) -> int:
        """The buffer of one component of a result; component -1 is the operation's scratch."""
        offset = _arena_offsets(memory_owner(value) if component >= 0 else value)[component]
        dtype = _dtype_name(operand.dtype)
        name = f"arena+{offset}:{dtype}[{operand.size}]"
        return self._add({"name": name, "kind": "arena", "dtype": dtype, "size": operand.size, "offset": offset})

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
            return self._weight(source, component, operand)
        return self.arena(source, operand, component)

    def _input_buffer(self, owner: Value, operand: Operand) -> int:
        name = str(owner.attrs["name"])
        if operand.size is None:
            return self._add({"name": name, "kind": "cache"})
        return self.input(name, _dtype_name(operand.dtype), operand.size)

    def _weight(self, recipe: Value, component: int, operand: Operand) -> int:
        name = self._recipe_name(recipe)
        tensor = tensor_name(name, components(recipe.type, {})[component])
        dtype = _dtype_name(operand.dtype)
        return self._add({"name": tensor, "kind": "weight", "dtype": dtype, "size": operand.size, "tensor": tensor})

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


def emit(entries: Mapping[str, Entry], bounds: Mapping[str, int], levels: Iterable[IsaLevel]) -> Emission:
    """The plan of all entries over one arena, and the kernels they share, to be built for each level."""
    plan, listed = _Plan(bounds), {}
    for name in STEP_INPUTS:
        plan.input(name, "int32", bounds["S"] * bounds["P"] if name == "page_table" else bounds[_input_dim(name)])
    for name, entry in entries.items():
        memo: dict[Value, bool] = {}
        called = [
            value
            for value in entry.graph.values()
            if not is_weight(value, memo) and value.op not in ("input", "reshape", "slice")
        ]
        calls = [plan.call(value) for value in called]
        listed[name] = _entry(plan, entry, calls, bounds)
    costs = {name: stated for spec, name in plan.kernels.items() if (stated := cost(spec)) is not None}
    content = {
        "arena_bytes": arena_bytes(entries, bounds),
        "buffers": plan.buffers,
        "entries": listed,
        "costs": costs,
    }
    levels = tuple(levels)
    described = tuple(
        {
            "name": level.name,
            "requires": list(level.requires),
            "file": f"kernels/{level.library}",
            "tuning": level.tuning.to_json(),
            **_prefill_from(level, entries),
        }
        for level in levels
    )

    def write_kernels(folder: Path, advance: Callable[[int], None]) -> None:
        folder.mkdir()

        built = [{name: build(spec, level) for spec, name in plan.kernels.items()} for level in levels]

        def library(level: IsaLevel, functions: Mapping[str, Any]) -> None:
            build_library(functions, level, folder / level.library)
            advance(1)

        # LLVM runs outside of Python's lock, so levels compile side by side.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(library, levels, built))

    def write_tvm(folder: Path) -> None:
        write_modules(folder / "tvm", entries, bounds, plan.kernels, plan.recipes, levels)

    def write_c(folder: Path) -> tuple[str, ...]:
        return write_native(folder, levels[0].platform)

    return Emission(content, plan.recipes, described, write_kernels, {"native": write_c, "tvm": write_tvm})


def _prefill_from(level: IsaLevel, entries: Mapping[str, Entry]) -> dict[str, int]:
    """Where the entry `prefill` begins to pay at a level whose absorbed attention is the faster kernel."""
    values = entries["prefill"].graph.values() if "prefill" in entries else []
    found = next((value for value in values if value.op == "mla_materialized"), None)
    if found is None or level.absorbed_rate == 1.0:
        return {}
    _, q_pe, cache, w_uk, w_uv, *_ = found.inputs
    if cache.dtype != "bf16":
        return {}
    nope, rank, rope, v = (int(dim) for dim in (*w_uk.shape[1:], q_pe.shape[-1], w_uv.shape[1]))
    return {"prefill_min_tokens": materialize_from(rank, nope, rope, v, level.absorbed_rate)}


def _input_dim(name: str) -> str:
    return "R" if name == "rows" else "T"


def _entry(plan: _Plan, entry: Entry, calls: list[list[Any]], bounds: Mapping[str, int]) -> dict[str, Any]:
    outputs = {}
    for name, value in entry.graph.results:
        if not name.startswith("cache."):
            size = components(value.type, bounds)[0].size
            outputs[name] = plan.arena(value, Operand(name, value.dtype, size), 0)
    hidden = next((value for value in entry.graph.values() if value.attrs.get("name") == "hidden"), None)
    described = {"calls": calls, "outputs": outputs, "min_tokens": entry.min_tokens, "max_tokens": bounds["T"]}
    if hidden is None:
        return described
    size = components(hidden.type, bounds)[0].size
    return described | {"inputs": {"hidden": plan.input("hidden", "float32", size)}}


def arena_bytes(entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> int:
    """End of the last byte that any result or scratch uses."""
    planned = (value for entry in entries.values() for value in entry.graph.values() if "arena" in value.attrs)
    return max(_last_byte(value, bounds) for value in planned)


def _last_byte(value: Value, bounds: Mapping[str, int]) -> int:
    offsets = _arena_offsets(value)
    sizes = [component.nbytes for component in components(value.type, bounds)]
    if len(offsets) > len(sizes):
        sizes.append(scratch_bytes(value, bounds))
    return max(at + size for at, size in zip(offsets, sizes, strict=True))


def _arena_offsets(value: Value) -> list[int]:
    """plan-memory's note on a result: the offset of each component, then of the scratch if there is any."""
    offsets = value.attrs["arena"]
    assert isinstance(offsets, tuple)
    return [offset for offset in offsets if isinstance(offset, int)]


def scratch_bytes(value: Value, bounds: Mapping[str, int]) -> int:
    """Bytes of the kernel's scratch operand, 0 for a kernel without one."""
    scratch = [operand for operand in operands(lower(value, bounds).spec) if operand.role == "scratch"]
    return sum(int(operand.size or 0) * NUMPY_DTYPES[operand.dtype].itemsize for operand in scratch)


def _dtype_name(dtype: str) -> str:
    """The name in plan.json."""
    return str(NUMPY_DTYPES[dtype].name)
