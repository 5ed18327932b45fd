"""Sparse attention: the fused operations of an indexer, which chooses the positions that a token attends to.

Source: DeepSeek-V3.2-Exp (DeepSeek sparse attention, "lightning indexer"). Sizes: T tokens, H heads of the indexer, D
columns of its keys of which the first R are rotated, k positions at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.core.ops import fused, primitive
from dsv3c.compiler.core.ops.table import Array, Op, float32, op_table, require
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32

F32, I32 = primitive.F32, primitive.I32


def infer_index_write(
    cache: TensorType,
    k: TensorType,
    weight: TensorType,
    bias: TensorType,
    table: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    eps: float,
    interleave: bool,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, k, weight, bias)
    require(cache.dtype in NUMPY_DTYPES and cache.shape[1:] == k.shape[1:], f"keys {k} do not fit the cache {cache}")
    require(weight.shape == bias.shape == k.shape[1:], f"{weight} and {bias} are no norm of keys {k}")
    fused.infer_rope(k, table, interleave)
    return cache


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """Over the last axis (Ba and others 2016, arXiv 1607.06450)."""
    centred = float32(x - x.mean(axis=-1, keepdims=True, dtype=np.float32))
    return float32(fused.evaluate_rms_norm(centred, weight, eps) + bias)


def evaluate_index_write(
    cache: Array,
    k: Array,
    weight: Array,
    bias: Array,
    table: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    eps: float,
    interleave: bool,
    page_size: int,
) -> Array:
    """Write each token's key: the layer norm of k [T, D], the first columns of which are rotated by table [T, R]."""
    rotated = fused.evaluate_rope(layer_norm(k, weight, bias, eps), table, interleave)
    slots = primitive.evaluate_token_slots(positions, sequence, page_table, page_size)
    return primitive.evaluate_scatter_rows(cache, slots, rotated)


def infer_index_topk(
    q: TensorType,
    weights: TensorType,
    cache: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    k: int,
    page_size: int,
) -> TensorType:
    primitive.require_paging(positions, sequence, page_table)
    primitive.require_dtype(F32, q, weights)
    require(q.shape[:-1] == weights.shape, f"queries {q} and weights {weights} differ in tokens or heads")
    require(cache.dtype in NUMPY_DTYPES and cache.shape[1:] == q.shape[2:], f"queries {q} do not fit the keys {cache}")
    require(k > 0, f"cannot choose {k} positions")
    return TensorType(I32, (q.shape[0], k))


def evaluate_index_topk(
    q: Array,
    weights: Array,
    cache: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    k: int,
    page_size: int,
) -> Array:
    """The positions 0 … its own with the k best scores, rising, then -1: q [T, H, D], weights [T, H] -> [T, k].

    A score is the sum over heads of weights * relu(q . key); of equal ones that of the lower position is better.
    """
    chosen = np.full((len(q), k), -1, np.int32)
    for token, (position, row) in enumerate(zip(positions, page_table[sequence], strict=True)):
        slots = primitive.evaluate_context_slots(row[None], page_size)[: position + 1]
        products = np.matmul(q[token], as_float32(cache[slots]).T)
        scores = np.matmul(weights[token], primitive.evaluate_relu(products))
        best = np.sort(np.argsort(-scores, kind="stable")[:k])
        chosen[token, : len(best)] = best
    return chosen


def infer_mla_sparse(
    q_latent: TensorType,
    q_pe: TensorType,
    cache: TensorType,
    chosen: TensorType,
    positions: TensorType,
    sequence: TensorType,
    page_table: TensorType,
    scale: float,
    page_size: int,
) -> TensorType:
    primitive.require_dtype(I32, chosen)
    require(len(chosen.shape) == 2 and chosen.shape[0] == q_latent.shape[0], f"chosen {chosen} is not [T, k]")
    return fused.infer_mla_absorbed(q_latent, q_pe, cache, positions, sequence, page_table, scale, page_size)


def evaluate_mla_sparse(
    q_latent: Array,
    q_pe: Array,
    cache: Array,
    chosen: Array,
    positions: Array,
    sequence: Array,
    page_table: Array,
    scale: float,
    page_size: int,
) -> Array:
    """As mla_absorbed, over the positions chosen [T, k] alone: none above the token's own; -1, which are none, stand
    at the end."""
    result = np.zeros(q_latent.shape, np.float32)
    query: Any = np.concatenate([q_latent, q_pe], axis=-1)
    for token, row in enumerate(page_table[sequence]):
        places = chosen[token][chosen[token] >= 0]
        rows = as_float32(cache[row[places // page_size] * page_size + places % page_size])
        weights = primitive.evaluate_softmax(np.matmul(query[token], rows.T) * np.float32(scale))
        result[token] = np.matmul(weights, rows[:, : q_latent.shape[-1]])
    return result


TABLE = op_table(
    Op("index_write", infer_index_write, evaluate_index_write, role="fused", in_place=True),
    Op("index_topk", infer_index_topk, evaluate_index_topk, role="fused"),
    Op("mla_sparse", infer_mla_sparse, evaluate_mla_sparse, role="fused"),
)
