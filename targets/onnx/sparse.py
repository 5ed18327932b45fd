"""Sparse attention: an indexer's keys in a cache of their own, what it chooses of the context, attention over that.

Chosen are positions i64 [batch, S, C], where C is the smaller of k and the length of the context. A step of few tokens
gathers the rows that each of them chose, where they are fewer than the context has; a longer one goes over the whole
context with all others masked, which gives the same and saves nothing.
"""

from __future__ import annotations

from dsv3c.compiler.core.ir import Value
from dsv3c.targets.onnx.attention import MASKED, cache_rows, context, from_rows, mask, over_context, query, row_width
from dsv3c.targets.onnx.lower import Lowering, rotated, weight_vector


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


def choose(lowering: Lowering, value: Value) -> str:
    """index_topk. TopK takes the lower index of equal values; what it takes beyond the context's end stays masked."""
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
    k = int(value.shape[1])
    count = b.once(("chosen", k), lambda: b.node("Min", context(lowering), b.ints(k)))
    return b.nodes_out("TopK", (ranked, count), [f"{ranked}_best", f"{ranked}_chosen"], axis=-1)[1]


def attend(lowering: Lowering, value: Value) -> str:
    """The head_linear over mla_sparse: [T, H, v_head_dim]."""
    attention, w_uv = value.inputs
    chosen = attention.inputs[3]
    b, whole, positions = lowering.b, query(lowering, attention), lowering[chosen]
    _mask(lowering)
    with b.branch() as few:
        gathered = _over_rows(lowering, whole, attention, positions)
    with b.branch() as many:
        masked = over_context(lowering, whole, attention, _masking(lowering, positions))
    k = int(chosen.shape[1])
    is_few = b.once(("few", k), lambda: _is_few(lowering, k))
    branches = b.subgraph("gathered", few, gathered), b.subgraph("masked", many, masked)
    found = b.node("If", is_few, then_branch=branches[0], else_branch=branches[1])
    return from_rows(lowering, found, attention, w_uv)


def _is_few(lowering: Lowering, k: int) -> str:
    """Whether the tokens of a sequence have fewer rows to gather than its context has."""
    b = lowering.b
    return b.node("Squeeze", b.node("Less", b.node("Mul", lowering.length(), b.ints(k)), context(lowering)))


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
