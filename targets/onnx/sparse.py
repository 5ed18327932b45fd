"""Sparse attention: an indexer's keys in a cache of their own, what it chooses of the context, attention over that.

Chosen are positions i64 [batch, S, k] of a context of more than k. A step of few tokens gathers the rows that each of
them chose, where they are fewer than the context has; a longer one goes over the whole context with all others masked,
which gives the same and saves nothing. Of k positions and fewer all would be chosen: nothing is scored, and attention
is that of a dense model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.targets.onnx import attention as dense
from dsv3c.targets.onnx.attention import MASKED, cache_rows, context, mask, over_context, row_width
from dsv3c.targets.onnx.lower import Lowering, rotated, weight_vector


def asked(graph: Graph) -> dict[Value, tuple[Value, ...]]:
    """What is computed for each index_topk alone, in order: only its queries and their weights read it."""
    values, read = graph.values(), {value for _, value in graph.results}
    for value in reversed(values):
        if value in read:
            read.update(value.inputs[2:] if value.op == "index_topk" else value.inputs)
    alone = [value for value in values if value not in read]
    return {value: _below(value.inputs[:2], alone) for value in values if value.op == "index_topk"}


def _below(tops: tuple[Value, ...], values: list[Value]) -> tuple[Value, ...]:
    """Those of `values`, which are in order, that `tops` are computed from, and the tops."""
    needed = set(tops)
    for value in reversed(values):
        if value in needed:
            needed.update(value.inputs)
    return tuple(value for value in values if value in needed)


def write(lowering: Lowering, value: Value) -> str:
    """index_write: the cache with the keys of the step behind it."""
    cache, k, weight, bias, table, *_ = value.inputs
    b, width = lowering.b, int(weight.shape[0])
    vectors = [weight_vector(lowering, vector) for vector in (weight, bias)]
    normed = b.node("LayerNormalization", lowering[k], *vectors, axis=-1, epsilon=value.attrs["eps"])
    keys = rotated(lowering, normed, 1, width, table, bool(value.attrs["interleave"]))
    rows = lowering.shaped(keys, lowering.batch(), 1, lowering.length(), width)
    past = lowering[cache]
    return b.node("Concat", past, rows, axis=2, out=past.replace("past_key_values", "present"))


def choose(lowering: Lowering, value: Value, ask: Callable[[], None]) -> str:
    """index_topk, which for a short context nothing reads. `ask` lowers what is computed for this choice alone."""
    b = lowering.b
    mask(lowering)
    with b.branch() as short:
        none = b.node("Identity", b.const(np.zeros((1, 1, 1)), "i64"))
    with b.branch() as long:
        ask()
        positions = _best(lowering, value)
    branches = b.subgraph("all", short, none, "i64"), b.subgraph("best", long, positions, "i64")
    return b.node("If", _is_short(lowering, value), then_branch=branches[0], else_branch=branches[1])


def _is_short(lowering: Lowering, chosen: Value) -> str:
    """Whether the context is no longer than what is chosen of it."""
    b, k = lowering.b, int(chosen.shape[1])
    return b.once(("short", k), lambda: b.node("Squeeze", b.node("LessOrEqual", context(lowering), b.ints(k))))


def _best(lowering: Lowering, value: Value) -> str:
    """TopK takes the lower index of equal values; what it takes beyond the end of a token's context stays masked."""
    q, weights, cache, *_ = value.inputs
    b, heads, width = lowering.b, int(q.shape[1]), int(q.shape[2])
    query = lowering.shaped(lowering[q], lowering.batch(), -1, width)
    keys = lowering.shaped(lowering[cache], lowering.batch(), -1, width)
    products = b.cast(b.node("Relu", b.node("MatMul", query, b.transpose(keys, 0, 2, 1))), b.dtype, "f32")
    products = lowering.shaped(products, lowering.batch(), lowering.length(), heads, context(lowering))
    given = lowering.shaped(lowering[weights], lowering.batch(), lowering.length(), 1, heads)
    scores = lowering.shaped(b.node("MatMul", given, products), lowering.batch(), lowering.length(), -1)
    seen = b.once("seen", lambda: b.node("GreaterOrEqual", _mask(lowering), b.const(0.0)))
    ranked = b.node("Where", seen, scores, b.const(float("-inf"), "f32"))
    k = b.ints(int(value.shape[1]))
    return b.nodes_out("TopK", (ranked, k), [f"{ranked}_best", f"{ranked}_chosen"], axis=-1)[1]


def attend(lowering: Lowering, layer: dense.Layer) -> str:
    """The head_linear over mla_sparse: [T, H, v_head_dim]."""
    is_short = _is_short(lowering, layer.absorbed.inputs[0].inputs[3])
    _mask(lowering)
    return dense.in_form(lowering, layer, lambda query, attention: _over(lowering, query, attention), is_short)


def _over(lowering: Lowering, query: str, attention: Value) -> str:
    b, chosen = lowering.b, attention.inputs[3]
    with b.branch() as short:
        all_rows = over_context(lowering, query, attention, mask(lowering))
    with b.branch() as long:
        chosen_rows = _over_chosen(lowering, query, attention, lowering[chosen])
    branches = b.subgraph("all", short, all_rows), b.subgraph("chosen", long, chosen_rows)
    return b.node("If", _is_short(lowering, chosen), then_branch=branches[0], else_branch=branches[1])


def _over_chosen(lowering: Lowering, query: str, attention: Value, positions: str) -> str:
    b = lowering.b
    with b.branch() as few:
        gathered = _over_rows(lowering, query, attention, positions)
    with b.branch() as many:
        masked = over_context(lowering, query, attention, _masking(lowering, positions))
    is_few = _is_few(lowering, int(attention.inputs[3].shape[1]))
    branches = b.subgraph("gathered", few, gathered), b.subgraph("masked", many, masked)
    return b.node("If", is_few, then_branch=branches[0], else_branch=branches[1])


def _is_few(lowering: Lowering, k: int) -> str:
    """Whether the tokens of a sequence have fewer rows to gather than its context has."""
    b = lowering.b

    def make() -> str:
        return b.node("Squeeze", b.node("Less", b.node("Mul", lowering.length(), b.ints(k)), context(lowering)))

    return b.once(("few", k), make)


def _mask(lowering: Lowering) -> str:
    """The additive mask of the context, [batch, S, past + S]."""
    b = lowering.b
    return b.once("mask of tokens", lambda: b.node("Squeeze", mask(lowering), b.ints(1)))


def _masking(lowering: Lowering, positions: str) -> str:
    """That, with all masked that are not chosen."""
    b = lowering.b
    none = b.node("Expand", b.const(MASKED[b.dtype]), b.node("Shape", _mask(lowering)))
    return b.node("ScatterElements", none, positions, _of_chosen(lowering, positions), axis=2)


def _of_chosen(lowering: Lowering, positions: str) -> str:
    """The additive mask of the chosen positions, [batch, S, C]."""
    return lowering.b.node("GatherElements", _mask(lowering), positions, axis=2)


def _over_rows(lowering: Lowering, query: str, attention: Value, positions: str) -> str:
    """softmax(query · rowsᵀ + mask) · rows of those that each token chose, [T, H, width]."""
    b, width = lowering.b, row_width(attention)
    which = lowering.shaped(positions, lowering.batch(), -1, 1)
    rows = b.node("GatherND", cache_rows(lowering, attention), which, batch_dims=1)
    rows = lowering.shaped(rows, lowering.tokens(), -1, width)
    scores = b.node("MatMul", query, b.transpose(rows, 0, 2, 1))
    masking = lowering.shaped(_of_chosen(lowering, positions), lowering.tokens(), 1, -1)
    return b.node("MatMul", b.node("Softmax", b.node("Add", scores, masking), axis=-1), rows)
