"""The fused operations: made by the passes, one kernel call each on every target.

Their numpy evaluation is the definition that kernels are tested against. Operands that a target stores quantised
(weights, activations) are decoded first, so one definition serves every format. Sizes: T tokens, H heads, L latent row
(kv_lora_rank + qk_rope_head_dim). Experts stand in `moe`, the indexer of sparse attention in `sparse`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import Dim, TensorType, dim_product
from dsv3c.compiler.core.ops import primitive
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.core.ops.weight import decoded, evaluate_quantize_rows
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.compiler.formats.elements import as_float32

F32, I32 = primitive.F32, primitive.I32


# --- norm, rotary embedding, feed-forward ----------------------------------------------------------------------------


def infer_rms_norm(x: TensorType, weight: TensorType, eps: float) -> TensorType:
    primitive.require_dtype(F32, x, weight)
    require(x.shape[-1:] == weight.shape, f"x {x.shape} and weight {weight.shape} do not agree")
    return TensorType(F32, x.shape)


def evaluate_rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) * weight over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""
    variance = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return float32(x * (1 / np.sqrt(variance + np.float32(eps))) * weight)


def infer_rope_table(positions: TensorType, inv_freq: TensorType, scale: float) -> TensorType:
    require(positions.dtype == I32 and len(positions.shape) == 1, "positions are i32[T]")
    require(inv_freq.dtype == F32 and len(inv_freq.shape) == 1, "inv_freq is f32[d/2]")
    return TensorType(F32, (*positions.shape, dim_product(2, inv_freq.shape[0])))


def evaluate_rope_table(positions: Array, inv_freq: Array, scale: float) -> Array:
    """[T, d]: cos in the first half, sin in the second, both times `scale`."""
    angles = positions[:, None].astype(np.float32) * inv_freq
    return float32(np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) * np.float32(scale))


def infer_rope(x: TensorType, table: TensorType, interleave: bool) -> TensorType:
    primitive.require_dtype(F32, x, table)
    columns, rotated = x.shape[-1], table.shape[-1]
    fits = isinstance(columns, int) and isinstance(rotated, int) and rotated <= columns
    require(fits, f"x has {columns} columns, the table {rotated}")
    require(x.shape[0] == table.shape[0], f"x has {x.shape[0]} tokens, the table {table.shape[0]}")
    return x


def evaluate_rope(x: Array, table: Array, interleave: bool) -> Array:
    """Rotate x [T, H, d] or [T, d]; pairs are (even, odd) columns when `interleave`, else (first, second) half.

    The result holds the rotated first members, then the second members. Columns behind those of the table [T, r] stay
    as they are.
    """
    x, rest = np.split(x, [table.shape[-1]], axis=-1)
    half = x.shape[-1] // 2
    shape = (x.shape[0], *(1,) * (x.ndim - 2), half)
    cos, sin = table[:, :half].reshape(shape), table[:, half:].reshape(shape)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleave else (x[..., :half], x[..., half:])
    return float32(np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1))


def infer_swiglu(x: TensorType) -> TensorType:
    primitive.require_dtype(F32, x)
    size = x.shape[-1]
    require(isinstance(size, int) and size % 2 == 0, "gate and up have the same size")
    return TensorType(F32, (*x.shape[:-1], int(size) // 2))


def evaluate_swiglu(x: Array) -> Array:
    """silu(gate) * up of x = gate | up."""
    gate, up = np.split(x, 2, axis=-1)
    return float32(gate * primitive.evaluate_sigmoid(gate) * up)


# --- multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) -----------------------------------------


def infer_head_linear(x: TensorType, weight: TensorType) -> TensorType:
    """x [T, H, K], weight [H, N, K] -> [T, H, N]: one linear map a head."""
    require(len(x.shape) == len(weight.shape) == 3, "x is [T, H, K], the weight [H, N, K]")
    require(x.shape[-1] == weight.shape[-1] and x.shape[1] == weight.shape[0], f"{x} does not fit {weight}")
    return TensorType(F32, (x.shape[0], weight.shape[0], weight.shape[1]))


def evaluate_head_linear(x: Any, weight: Any) -> Array:
    return float32(np.einsum("thk,hnk->thn", decoded(x), decoded(weight), optimize=True))


def _require_parts(cache: TensorType, rank: Dim, rope: Dim) -> None:
    """A cache's row is `rank` columns of the latent and `rope` of the key, and its scales, if any, are those parts'."""
    coded = CodedRows.of_type(cache.dtype)
    fits = cache.shape[1:] == (_sum(rank, rope),) and (coded is None or coded.split == rank)
    require(fits, f"a latent of {rank} and a key of {rope} do not fit the cache {cache}")


def infer_mla_write(
    cache: TensorType,
    kv_a: TensorType,
    weight: TensorType,
    table: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    eps: float,
    interleave: bool,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    require(cache.shape[1:] == kv_a.shape[1:], f"a latent row {kv_a.shape} does not fit the cache {cache.shape}")
    parts = _sum(weight.shape[0], table.shape[-1])
    require(kv_a.shape[-1] == parts, f"a latent row {kv_a.shape} is not norm {weight.shape} and rope {table.shape}")
    _require_parts(cache, weight.shape[0], table.shape[-1])
    return cache


def evaluate_mla_write(
    cache: Array,
    kv_a: Array,
    weight: Array,
    table: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    eps: float,
    interleave: bool,
    page_size: int,
) -> Array:
    """Write each token's latent row: rms_norm of the first kv_lora_rank columns of kv_a [T, L], rope of the rest."""
    rank = weight.shape[0]
    latent = evaluate_rms_norm(kv_a[:, :rank], weight, eps)
    rotated = evaluate_rope(kv_a[:, rank:], table, interleave)
    slots = primitive.evaluate_token_slots(positions, sequence, page_table, page_size)
    return primitive.evaluate_scatter_rows(cache, slots, np.concatenate([latent, rotated], axis=-1))


def infer_mla_absorbed(
    q_latent: TensorType,
    q_pe: TensorType,
    cache: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    scale: float,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, q_latent, q_pe)
    require(q_latent.shape[:-1] == q_pe.shape[:-1], f"queries {q_latent} and {q_pe} differ in tokens or heads")
    _require_parts(cache, q_latent.shape[-1], q_pe.shape[-1])
    return q_latent


def _sum(*dims: Dim) -> int:
    return sum(int(dim) for dim in dims)


def _attend(
    scores: Array, values: Array, positions: Array, sequence: Array, page_table: Array, page_size: int
) -> Array:
    """Causal softmax over the context: scores [H, T, N], values [N, V] or [H, N, V] -> [T, H, V]."""
    mask = primitive.evaluate_context_mask(positions, sequence, page_table, page_size)
    weights = primitive.evaluate_softmax(np.where(mask, scores, -np.inf))
    return float32(np.matmul(weights, values).transpose(1, 0, 2))


def evaluate_mla_absorbed(
    q_latent: Array,
    q_pe: Array,
    cache: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    scale: float,
    page_size: int,
) -> Array:
    """Attention in latent space: the cache is the one key head, its first kv_lora_rank columns the value.

    q_latent [T, H, kv_lora_rank], q_pe [T, H, rope], cache [slots, kv_lora_rank + rope] -> [T, H, kv_lora_rank].
    """
    context = as_float32(cache[primitive.evaluate_context_slots(page_table, page_size)])
    query = np.concatenate([q_latent, q_pe], axis=-1).transpose(1, 0, 2)
    scores = np.matmul(query, context.T) * np.float32(scale)
    return _attend(scores, context[:, : q_latent.shape[-1]], positions, sequence, page_table, page_size)


def infer_mla_materialized(
    q_nope: TensorType,
    q_pe: TensorType,
    cache: TensorType,
    w_uk: TensorType,
    w_uv: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    scale: float,
    page_size: int,
    group: int = 0,
) -> TensorType:
    require(group >= 0, f"latents are rounded in groups of {group}")
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, q_nope, q_pe)
    require(q_nope.shape[:-1] == q_pe.shape[:-1], f"queries {q_nope} and {q_pe} differ in tokens or heads")
    require(q_nope.shape[1] == w_uk.shape[0] == w_uv.shape[0], f"{w_uk} and {w_uv} do not have the heads of {q_nope}")
    require(w_uk.shape[-1] == w_uv.shape[-1], f"{w_uk} and {w_uv} differ in the latent size")
    require(q_nope.shape[-1] == w_uk.shape[1], f"queries {q_nope} do not fit the key weight {w_uk}")
    _require_parts(cache, w_uk.shape[-1], q_pe.shape[-1])
    return TensorType(F32, (q_nope.shape[0], w_uv.shape[0], w_uv.shape[1]))


def evaluate_mla_materialized(
    q_nope: Array,
    q_pe: Array,
    cache: Array,
    w_uk: Any,
    w_uv: Any,
    positions: Array,
    sequence: Array,
    page_table: Array,
    scale: float,
    page_size: int,
    group: int = 0,
) -> Array:
    """Attention on rebuilt keys and values: w_uk [H, nope, kv_lora_rank], w_uv [H, v, kv_lora_rank] -> [T, H, v].

    group: latents are first rounded to int8 in groups of it (`quantize_rows`); 0: they are not.
    """
    w_uk, w_uv = decoded(w_uk), decoded(w_uv)
    rank = w_uk.shape[-1]
    context = as_float32(cache[primitive.evaluate_context_slots(page_table, page_size)])
    latents = decoded(evaluate_quantize_rows(context[:, :rank], group)) if group else context[:, :rank]
    keys = np.einsum("nl,hdl->hdn", latents, w_uk, optimize=True)
    values = np.einsum("nl,hdl->hnd", latents, w_uv, optimize=True)
    scores = np.matmul(q_nope.transpose(1, 0, 2), keys) + np.matmul(q_pe.transpose(1, 0, 2), context[:, rank:].T)
    return _attend(scores * np.float32(scale), values, positions, sequence, page_table, page_size)


TABLE = op_table(
    Op("rms_norm", infer_rms_norm, evaluate_rms_norm, role="fused"),
    Op("rope_table", infer_rope_table, evaluate_rope_table, role="fused"),
    Op("rope", infer_rope, evaluate_rope, role="fused"),
    Op("swiglu", infer_swiglu, evaluate_swiglu, role="fused"),
    Op("head_linear", infer_head_linear, evaluate_head_linear, role="fused"),
    Op("mla_write", infer_mla_write, evaluate_mla_write, role="fused", in_place=True),
    Op("mla_absorbed", infer_mla_absorbed, evaluate_mla_absorbed, role="fused"),
    Op("mla_materialized", infer_mla_materialized, evaluate_mla_materialized, role="fused"),
)
