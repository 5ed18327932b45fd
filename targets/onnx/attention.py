"""Latent attention over a cache of one key head: past_key_values.N.key [batch, 1, past, latent] grows to present.N.key.

A latent row is rms_norm(kv latent) [kv_lora_rank] then the rotated shared key [qk_rope_head_dim]. In absorbed form the
row is the key of all heads, and the whole row is also the value: the columns of the key in the result are dropped,
which costs less than a copy of the cache without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value
from dsv3c.targets.onnx.builder import packed, requantised, sizes, source
from dsv3c.targets.onnx.lower import Lowering, head_linear, matmul_nbits, rotated, weight_vector

# The sums over rows of the cache, [T, H, width] or in that order, of absorbed queries of an attention.
OverRows = Callable[[str, Value], str]
MASKED = {"f32": -1e30, "f16": -6e4}  # finite: a row of padding has no key at all, and must not become NaN


@dataclass(frozen=True)
class Layer:
    """Both forms of one layer's attention: the head_linear that ends the absorbed one, and the materialised one.

    from_tokens: smallest step of the materialised form, None where there is none.
    """

    absorbed: Value
    materialized: Value | None
    from_tokens: int | None


def write(lowering: Lowering, value: Value) -> str:
    """mla_write: the cache with the step's rows behind it."""
    cache, kv_a, weight, table, *_ = value.inputs
    b, rank, width = lowering.b, int(weight.shape[0]), int(kv_a.shape[-1])
    row = lowering[kv_a]
    latent = b.node(
        "RMSNormalization", b.slice(row, 0, rank), weight_vector(lowering, weight), axis=-1, epsilon=value.attrs["eps"]
    )
    interleave = bool(value.attrs["interleave"])
    key = rotated(lowering, b.slice(row, rank, width), 1, width - rank, table, interleave)
    rows = b.node("Concat", latent, b.reshape(key, -1, width - rank), axis=-1)
    rows = lowering.shaped(rows, lowering.batch(), 1, lowering.length(), width)
    past = lowering[cache]
    return b.node("Concat", past, rows, axis=2, out=past.replace("past_key_values", "present"))


def attend(lowering: Lowering, layer: Layer) -> str:
    """[T, H, v_head_dim]; when both forms exist, the length of the step decides at run time."""
    whole = mask(lowering)
    return in_form(lowering, layer, lambda query, attention: over_context(lowering, query, attention, whole))


def in_form(lowering: Lowering, layer: Layer, over: OverRows, may_be_long: str | None = None) -> str:
    """[T, H, v_head_dim], by `over` in absorbed form. may_be_long: what must hold besides for the materialised one.

    ONNX Runtime packs weights of MatMulNBits ahead in a branch, but not in a branch of that: none is in `over`.
    """
    if layer.materialized is None or layer.from_tokens is None:
        return _absorbed(lowering, layer.absorbed, over)
    b, from_tokens = lowering.b, layer.from_tokens
    with b.branch() as long:
        many = _materialized(lowering, layer.materialized, layer.absorbed)
    with b.branch() as short:
        few = _absorbed(lowering, layer.absorbed, over)
    is_long = b.once("is_long", lambda: _at_least(lowering, from_tokens))
    if may_be_long is not None:
        is_long = b.once(("and", is_long, may_be_long), lambda: b.node("And", is_long, may_be_long))
    then, otherwise = b.subgraph("materialized", long, many), b.subgraph("absorbed", short, few)
    return b.node("If", is_long, then_branch=then, else_branch=otherwise)


def _at_least(lowering: Lowering, tokens: int) -> str:
    b = lowering.b
    return b.node("Squeeze", b.node("GreaterOrEqual", lowering.length(), b.ints(tokens)))


def mask(lowering: Lowering) -> str:
    """Additive [batch, 1, S, past + S]: a key counts when attention_mask has it and it is not behind the query."""
    b = lowering.b

    def make() -> str:
        total = context(lowering)
        keys = b.node("Range", b.const(0, "i64"), b.node("Squeeze", total), b.const(1, "i64"))
        first = b.node("Sub", total, lowering.length())
        queries = b.node("Range", b.node("Squeeze", first), b.node("Squeeze", total), b.const(1, "i64"))
        causal = b.node("LessOrEqual", keys, b.reshape(queries, -1, 1))
        given = b.node("Unsqueeze", b.cast("attention_mask", "i64", "bool"), b.ints(1, 2))
        allowed = b.node("And", causal, given)
        return b.node("Where", allowed, b.const(0.0), b.const(MASKED[b.dtype]))

    return b.once("mask", make)


def context(lowering: Lowering) -> str:
    """past + S, as a vector i64[1]."""
    b = lowering.b
    return b.once("context", lambda: b.node("Shape", "attention_mask", start=1, end=2))


def _absorbed(lowering: Lowering, value: Value, over: OverRows) -> str:
    attention, w_uv = value.inputs
    return _from_rows(lowering, over(_query(lowering, attention), attention), attention, w_uv)


def _query(lowering: Lowering, attention: Value) -> str:
    """[W_UK · q_nope | q_pe] times the scale, [T, H, width of a row]: DeepSeek-V2, arXiv 2405.04434, section 2.1.2."""
    q_latent, q_pe, *_ = attention.inputs
    q_nope, w_uk = q_latent.inputs
    b = lowering.b
    whole = b.node("Concat", head_linear(lowering, lowering[q_nope], w_uk), lowering[q_pe], axis=-1)
    return b.node("Mul", whole, b.const(attention.attrs["scale"]))


def cache_rows(lowering: Lowering, attention: Value) -> str:
    """The cache that is attended to, [batch, past + S, width]."""
    _, _, cache, *_ = attention.inputs
    return lowering.shaped(lowering[cache], lowering.batch(), -1, row_width(attention))


def row_width(attention: Value) -> int:
    q_latent, q_pe, *_ = attention.inputs
    return int(q_latent.shape[2]) + int(q_pe.shape[2])


def over_context(lowering: Lowering, query: str, attention: Value, masking: str) -> str:
    """softmax(query · cacheᵀ + masking) · cache of all rows, those of heads and tokens as one axis."""
    b, heads, rows = lowering.b, int(attention.shape[1]), cache_rows(lowering, attention)
    # The one key head serves all heads, so they are further rows of one product: [batch, S * H, width] by the cache.
    flat = lowering.shaped(query, lowering.batch(), -1, row_width(attention))
    scores = b.node("MatMul", flat, b.transpose(rows, 0, 2, 1))
    scores = lowering.shaped(scores, lowering.batch(), lowering.length(), heads, context(lowering))
    masked = b.node("Add", scores, lowering.shaped(masking, lowering.batch(), lowering.length(), 1, -1))
    weights = lowering.shaped(b.node("Softmax", masked, axis=-1), lowering.batch(), -1, context(lowering))
    return b.node("MatMul", weights, rows)


def _from_rows(lowering: Lowering, found: str, attention: Value, w_uv: Value) -> str:
    """W_UV · the latent columns of sums of rows: [T, H, v_head_dim]."""
    heads, rank = int(attention.shape[1]), int(attention.shape[2])
    latents = lowering.b.slice(found, 0, rank)
    return head_linear(lowering, lowering.b.reshape(latents, -1, heads, rank), w_uv)


def _materialized(lowering: Lowering, value: Value, absorbed: Value) -> str:
    """Attention on keys and values rebuilt from the whole context."""
    _, _, _, w_uk, w_uv, *_ = value.inputs
    attention, _ = absorbed.inputs
    q_latent, q_pe, cache, *_ = attention.inputs
    b, (heads, nope, rank), v_dim = lowering.b, sizes(w_uk.type), sizes(w_uv.type)[1]
    rope, rows = int(q_pe.shape[2]), lowering[cache]
    flat = b.reshape(b.slice(rows, 0, rank), -1, rank)
    k_nope = lowering.shaped(_project(lowering, flat, w_uk), lowering.batch(), -1, heads, nope)
    shape = b.node("Concat", lowering.batch(), b.ints(heads), context(lowering), b.ints(rope), axis=0)
    k_pe = b.node("Expand", b.slice(rows, rank, rank + rope), shape)
    key = b.node("Concat", b.transpose(k_nope, 0, 2, 1, 3), k_pe, axis=-1)
    values = lowering.shaped(_project(lowering, flat, w_uv), lowering.batch(), -1, heads, v_dim)
    query = b.node("Concat", lowering[q_latent.inputs[0]], lowering[q_pe], axis=-1)
    found = _attention(lowering, query, heads, nope + rope, key, b.transpose(values, 0, 2, 1, 3), value)
    return b.reshape(b.transpose(found, 0, 2, 1, 3), -1, heads, v_dim)


def _project(lowering: Lowering, x: str, weight: Value) -> str:
    """x [M, kv_lora_rank] times all heads of a weight [H, N, kv_lora_rank] -> [M, H * N]."""
    b, (made_from, format) = lowering.b, source(weight)
    heads, n, k = sizes(weight.type)
    if format.has_codes:
        return matmul_nbits(lowering, x, b.weight(packed(weight)), heads * n, k)
    columns = ops.apply("transpose", (made_from,), {"axes": (2, 0, 1)})
    return b.node("MatMul", x, b.floats(b.weight(requantised(columns, format)), "data", (k, heads * n)))


def _attention(lowering: Lowering, query: str, heads: int, width: int, key: str, value: str, of: Value) -> str:
    """Attention of query [T, H, width] over key and value [batch, heads or 1, past + S, …] -> [batch, H, S, v]."""
    b = lowering.b
    query = lowering.shaped(query, lowering.batch(), lowering.length(), heads, width)
    return b.node("Attention", b.transpose(query, 0, 2, 1, 3), key, value, mask(lowering), scale=of.attrs["scale"])
