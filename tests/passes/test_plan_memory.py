from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, TensorType, Value, is_weight
from dsv3c.compiler.core.ops.weight import QRows
from dsv3c.compiler.core.storage import components, memory_owner, strided
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE
from dsv3c.passes.fuse_mla import FuseMla
from dsv3c.passes.fuse_moe import FuseMoe
from dsv3c.passes.fuse_qkv_a import FuseQkvA
from dsv3c.passes.fuse_rms_norm import FuseRmsNorm
from dsv3c.passes.fuse_rope import FuseRope
from dsv3c.passes.fuse_router import FuseRouter
from dsv3c.passes.fuse_swiglu import FuseSwiglu
from dsv3c.passes.pack import Pack
from dsv3c.passes.plan_memory import Lifetime, PlanMemory, place
from dsv3c.passes.quantise import Quantise
from dsv3c.passes.simplify import Simplify
from tests.conftest import Golden
from tests.passes.evaluation import changed, graph

BOUNDS = {"T": 6, "R": 2, "S": 2, "P": 2}
NO_SCRATCH = PlanMemory(BOUNDS, lambda _: 0)

CHAIN = """
  %x: f32[T, 64] = input()
  %norm: f32[64] = param()
  %1: f32[T, 64] = rms_norm(%x, %norm) {"eps": 0.001}
  %2: q8-g32[T, 64] = quantize_rows(%1) {"group": 32}
  %w: int8-g32[64, 64]@rows16 = param()
  %4: f32[T, 64] = linear(%2, %w)
  %5: f32[T, 32] = slice(%4) {"axis": -1, "start": 0, "stop": 32}
  %6: f32[T, 16] = swiglu(%5)
  %7: f32[T, 80] = concat(%4, %6) {"axis": -1}
  return r=%7
"""


def blocks() -> st.SearchStrategy[list[Lifetime]]:
    value = ops.const(0.0)
    block = st.builds(
        lambda units, first, length: Lifetime(value, 64 * units, first, first + length),
        st.integers(0, 20),
        st.integers(0, 20),
        st.integers(0, 8),
    )
    return st.lists(block, max_size=30)


def alive_together(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


@given(blocks())
def test_blocks_that_are_alive_together_share_no_byte(wanted: list[Lifetime]) -> None:
    place(wanted)
    for index, a in enumerate(wanted):
        assert a.offset >= 0
        assert a.offset % 64 == 0
        for b in wanted[:index]:
            apart = a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
            assert apart or not alive_together(a, b) or 0 in (a.nbytes, b.nbytes)


@given(blocks())
def test_the_arena_is_no_larger_than_all_blocks_together(wanted: list[Lifetime]) -> None:
    place(wanted)
    assert max((block.offset + block.nbytes for block in wanted), default=0) <= sum(block.nbytes for block in wanted)


def test_blocks_that_never_meet_share_their_bytes() -> None:
    wanted = [Lifetime(ops.const(0.0), 128, first, first) for first in range(4)]
    place(wanted)
    assert {block.offset for block in wanted} == {0}


def test_every_result_gets_an_offset_for_each_component(golden: Golden) -> None:
    after, count = changed(NO_SCRATCH, graph(CHAIN), phase="kernel")
    assert count == 5
    golden.check(str(after))


def test_views_inputs_and_weights_get_none() -> None:
    after, _ = changed(NO_SCRATCH, graph(CHAIN), phase="kernel")
    planned = {value.op for value in after.values() if "arena" in value.attrs}
    assert planned == {"rms_norm", "quantize_rows", "linear", "swiglu", "concat"}


def test_scratch_gets_the_last_offset_and_lives_for_one_operation() -> None:
    after, _ = changed(
        PlanMemory(BOUNDS, lambda value: 100 if value.op == "linear" else 0), graph(CHAIN), phase="kernel"
    )
    offsets = {value.op: value.attrs["arena"] for value in after.values() if "arena" in value.attrs}
    assert {op: len(places) for op, places in offsets.items()} == {  # type: ignore[arg-type]
        "rms_norm": 1,
        "quantize_rows": 3,
        "linear": 2,
        "swiglu": 1,
        "concat": 1,
    }
    execute_and_compare(graph(CHAIN), PlanMemory(BOUNDS, lambda _: 100))


def test_the_plan_is_the_same_from_run_to_run() -> None:
    assert NO_SCRATCH.run(graph(CHAIN)) == NO_SCRATCH.run(graph(CHAIN))


@pytest.mark.parametrize("scratch", [0, 100])
def test_a_chain_with_views_runs_in_its_arena(scratch: int) -> None:
    execute_and_compare(graph(CHAIN), PlanMemory(BOUNDS, lambda _: scratch))


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=25), st.data()
)
def test_any_graph_runs_in_its_arena(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Sums, joins, reshapes and slices of earlier values; some of them are results."""
    values = [ops.leaf("input", "x", TensorType("f32", ("T", 4)))]
    for first, second, kind in steps:
        x, y = values[first % len(values)], values[second % len(values)]
        values.append(combined(x, y, kind))
    chosen = data.draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=4))
    results = tuple((f"r{index}", value) for index, value in enumerate(chosen))
    execute_and_compare(Graph("g", results), NO_SCRATCH)


def combined(x: Value, y: Value, kind: int) -> Value:
    width = int(x.shape[-1])
    if kind == 0 and width > 1:
        return ops.apply("slice", (x,), {"axis": -1, "start": 1, "stop": width})
    if kind == 1 and width + int(y.shape[-1]) < 64:
        return ops.apply("concat", (x, y), {"axis": -1})
    return ops.apply("add", (x, x if x.shape != y.shape else y), {})


def model_graph(checkpoint: Checkpoint, form: str) -> Graph:
    if form == "mtp":
        traced = tracer.trace_mtp(checkpoint.config, checkpoint.shapes, PAGE_SIZE, 0)
    else:
        traced = tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)
    for item in (
        Simplify(), FuseRmsNorm(), FuseRope(), FuseQkvA(), Simplify(), FuseMla("absorbed" if form == "mtp" else form),
        FuseRouter(), FuseMoe(), FuseSwiglu(), Quantise("int8", "int8", "bfloat16"), Pack("rows16", True),
    ):  # fmt: skip
        traced, _ = item.run(traced)
    return traced


@pytest.mark.parametrize("form", ["absorbed", "materialized", "mtp"])
def test_the_bundled_model_runs_in_its_arena(form: str, bundled_model: Path) -> None:
    """Results are written to one array of bytes at their offsets and read back from it, scratch is overwritten."""
    checkpoint = Checkpoint.open(bundled_model)
    execute_and_compare(model_graph(checkpoint, form), PlanMemory(BOUNDS, lambda _: 256), checkpoint.read)


class Arena:
    """Runs a planned graph in one array of bytes."""

    def __init__(self, weights: Mapping[Value, Any], inputs: Mapping[str, Any], nbytes: int) -> None:
        self.memory = np.full(nbytes, 0xFF, np.uint8)  # NaN, wherever a float is read before it is written
        self.weights = weights
        self.inputs = dict(inputs)

    def bytes_at(self, value: Value, index: int, nbytes: int) -> Any:
        offsets = value.attrs["arena"]
        assert isinstance(offsets, tuple)
        at = int(offsets[index])  # type: ignore[arg-type]
        assert at + nbytes <= self.memory.size
        return self.memory[at : at + nbytes]

    def component(self, value: Value, index: int) -> Any:
        part = components(value.type, BOUNDS)[index]
        return self.bytes_at(value, index, part.nbytes).view(NUMPY_DTYPES[part.dtype]).reshape(part.shape)

    def read(self, value: Value) -> Any:
        if value in self.weights:
            return self.weights[value]
        owner = memory_owner(value)
        if owner.op == "input":
            flat = self.inputs[str(owner.attrs["name"])]
        elif owner.dtype.startswith("q8-g"):
            return QRows(*(self.component(owner, index).copy() for index in range(3)), int(owner.shape[-1]))
        else:
            flat = self.component(owner, 0)
        if owner == value or ops.lookup(value.op).in_place:
            return flat.copy()
        at, shape = strided(value), components(value.type, BOUNDS)[0].shape
        index = at.offset + sum(i * stride for i, stride in zip(np.indices(shape), at.strides, strict=True))
        return flat.reshape(-1)[index]

    def run(self, value: Value, scratch: int) -> None:
        if scratch:
            self.bytes_at(value, -1, scratch)[:] = 0xFF
        operands = [self.read(source) for source in value.inputs]
        result = ops.lookup(value.op).evaluate(*operands, **value.semantics)
        owner = memory_owner(value)
        if owner.op == "input":
            self.inputs[str(owner.attrs["name"])] = result
            return
        arrays = (result.data, result.scale, result.sum) if isinstance(result, QRows) else (result,)
        for index, array in enumerate(arrays):
            self.component(value, index)[...] = array


def execute_and_compare(before: Graph, plan: PlanMemory, read: Any = None) -> None:
    memo: dict[Value, bool] = {}
    inputs, tensors = step_inputs(before, read)
    after, _ = plan.run(before)
    expected = ops.evaluate_graph(before, inputs, tensors)
    order = [value for value in after.values() if value.op != "input"]
    stored = [value for value in order if is_weight(value, memo)]
    used = [value for value in stored if any(value in user.inputs and not memo[user] for user in order)]
    given = ops.evaluate(used, lambda leaf: tensors(str(leaf.attrs["name"])))
    arena = Arena(dict(zip(used, given, strict=True)), inputs, arena_bytes(after, plan))
    for value in order:
        if not memo[value] and ops.lookup(value.op).role != "view":
            arena.run(value, plan.scratch(value) if "arena" in value.attrs else 0)
    for name, value in after.results:
        np.testing.assert_array_equal(arena.read(value), expected[name], err_msg=name)


def arena_bytes(planned: Graph, plan: PlanMemory) -> int:
    ends = [0]
    for value in planned.values():
        sizes = [part.nbytes for part in components(value.type, BOUNDS | {"N": 1})] + [plan.scratch(value)]
        ends += [int(at) + size for at, size in zip(value.attrs.get("arena", ()), sizes, strict=False)]  # type: ignore[arg-type, call-overload]
    return max(ends)


def step_inputs(graph: Graph, read: Any) -> tuple[dict[str, Any], Any]:
    """Inputs of the largest step: two sequences, the second with rows in the cache; weights from `read` or random."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "tokens": rng.integers(0, 2048, 6).astype(np.int32),
        "positions": np.array([0, 1, 2, 16, 17, 18], np.int32),
        "sequence": np.array([0, 0, 0, 1, 1, 1], np.int32),
        "page_table": np.array([[2, 0], [3, 1]], np.int32),
        "rows": np.array([2, 5], np.int32),
    }
    tensors: dict[str, Any] = {}
    for value in graph.values():
        if value.op == "input" and value.attrs["name"] not in inputs:
            shape = [64 if dim == "N" else BOUNDS.get(str(dim), dim) for dim in value.shape]
            inputs[str(value.attrs["name"])] = rng.standard_normal(shape).astype(np.float32)  # type: ignore[arg-type]
        elif value.op == "param" and read is None:
            tensors[str(value.attrs["name"])] = random_weight(value, rng)
    return inputs, read or tensors.__getitem__


def random_weight(value: Value, rng: np.random.Generator) -> Any:
    array = rng.standard_normal([int(dim) for dim in value.shape]).astype(np.float32)
    if not value.type.layout:
        return array
    stored = ops.lookup("quantize").evaluate(array, format=value.dtype)
    return ops.lookup("pack").evaluate(stored, layout=value.type.layout)
