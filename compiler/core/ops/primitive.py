"""The primitive operations: what the tracer records when it runs the model."""

from __future__ import annotations

from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import Attr, Dim, TensorType, dim_product
from dsv3c.compiler.core.ops.table import Array, Op, broadcast, concrete, element_count, float32, op_table, require
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats.coded_rows import stored
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32

F32, I32, BOOL = "f32", "i32", "bool"
CAST_DTYPES = {F32: np.float32, I32: np.int32, BOOL: np.bool_}


# --- leaves ----------------------------------------------------------------------------------------------------------


def infer_const(data: Attr) -> TensorType:
    return TensorType(F32, np.shape(data))  # type: ignore[arg-type]


def evaluate_const(data: Attr) -> Array:
    return np.array(data, dtype=np.float32)


def _no_rule(*_: object, **__: object) -> Any:
    raise ValueError("inputs and params are given, not computed")


# --- elementwise -----------------------------------------------------------------------------------------------------


def require_dtype(dtype: str, *types: TensorType) -> None:
    require(all(type.dtype == dtype for type in types), f"operands are {dtype}")


def infer_unary(x: TensorType) -> TensorType:
    require_dtype(F32, x)
    return x


def evaluate_relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def infer_binary(x: TensorType, y: TensorType) -> TensorType:
    require_dtype(F32, x, y)
    return TensorType(F32, broadcast(x.shape, y.shape))


def evaluate_sigmoid(x: Array) -> Array:
    """1/(1+e^-x) without overflow for large |x|."""
    e = np.exp(-np.abs(x))
    return float32(np.where(x >= 0, 1 / (1 + e), e / (1 + e)))


def infer_cast(x: TensorType, dtype: str) -> TensorType:
    require(dtype in CAST_DTYPES and x.dtype in CAST_DTYPES, f"cast is among {', '.join(CAST_DTYPES)}")
    return TensorType(dtype, x.shape)


def infer_where(mask: TensorType, x: TensorType, other: TensorType) -> TensorType:
    require(mask.dtype == BOOL, "the mask is bool")
    require_dtype(F32, x, other)
    return TensorType(F32, broadcast(mask.shape, x.shape, other.shape))


def evaluate_where(mask: Array, x: Array, other: Array) -> Array:
    return float32(np.where(mask, np.asarray(x), other))


# --- reductions and products -----------------------------------------------------------------------------------------


def infer_reduce(x: TensorType, axis: int, keepdims: bool) -> TensorType:
    require_dtype(F32, x)
    shape = list(x.shape)
    shape[axis] = 1
    if not keepdims:
        del shape[axis]
    return TensorType(x.dtype, tuple(shape))


def evaluate_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return float32(e / e.sum(axis=-1, keepdims=True))


def infer_matmul(a: TensorType, b: TensorType) -> TensorType:
    require_dtype(F32, a, b)
    require(min(len(a.shape), len(b.shape)) >= 2, "operands have two dims or more")
    require(a.shape[-1] == b.shape[-2], f"the inner dims {a.shape[-1]} and {b.shape[-2]} differ")
    return TensorType(F32, (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def infer_linear(x: TensorType, weight: TensorType) -> TensorType:
    """x [..., T, K] times weight [..., N, K] transposed; leading dims of the weight (experts) broadcast."""
    require(len(weight.shape) >= 2, "the weight is [..., N, K]")
    require(len(x.shape) >= 2, "x is [..., T, K]")
    require(x.shape[-1] == weight.shape[-1], f"x has {x.shape[-1]} columns, the weight {weight.shape[-1]}")
    return TensorType(F32, (*broadcast(x.shape[:-2], weight.shape[:-2]), x.shape[-2], weight.shape[-2]))


def evaluate_linear(x: Any, weight: Any) -> Array:
    return float32(np.matmul(decoded(x), np.swapaxes(decoded(weight), -1, -2)))


# --- shape -----------------------------------------------------------------------------------------------------------


def require_plain(*types: TensorType) -> None:
    """Stored forms (quantised, packed) are read by their kernels alone."""
    require(all(type.dtype in NUMPY_DTYPES and not type.layout for type in types), "operands are plain arrays")


def infer_reshape(x: TensorType, shape: tuple[Dim, ...]) -> TensorType:
    require_plain(x)
    require(sum(isinstance(dim, str) for dim in shape) <= 1, f"{shape} has more than one symbolic dim")
    require(element_count(x.shape) == element_count(shape), f"{x.shape} does not hold as many elements as {shape}")
    return TensorType(x.dtype, tuple(shape))


def evaluate_reshape(x: Array, shape: tuple[Dim, ...]) -> Array:
    return x.reshape(concrete(shape))


def infer_transpose(x: TensorType, axes: tuple[int, ...]) -> TensorType:
    require_plain(x)
    require(sorted(axes) == list(range(len(x.shape))), f"{axes} is no permutation of the axes")
    return TensorType(x.dtype, tuple(x.shape[axis] for axis in axes))


def infer_slice(x: TensorType, axis: int, start: int, stop: int, step: int = 1) -> TensorType:
    """x[..., start:stop:step, ...] on one axis of known size."""
    require_plain(x)
    size = x.shape[axis]
    require(isinstance(size, int) and 0 <= start < stop <= size, f"{start}:{stop} is outside of dim {size}")
    require(step >= 1, f"the step is {step}")
    shape = list(x.shape)
    shape[axis] = len(range(start, stop, step))
    return TensorType(x.dtype, tuple(shape))


def evaluate_slice(x: Array, axis: int, start: int, stop: int, step: int = 1) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


def infer_concat(*types: TensorType, axis: int) -> TensorType:
    require_plain(*types)
    require_dtype(types[0].dtype, *types)
    shape = list(types[0].shape)
    sizes = [type.shape[axis] for type in types]
    require(all(isinstance(size, int) for size in sizes), "the joined dims have known sizes")
    shape[axis] = sum(size for size in sizes if isinstance(size, int))
    for type in types:
        rest = [*type.shape]
        rest[axis] = shape[axis]
        require(rest == shape, f"{type.shape} does not join {types[0].shape} on axis {axis}")
    return TensorType(types[0].dtype, tuple(shape))


def evaluate_concat(*arrays: Array, axis: int) -> Array:
    if len({array.dtype for array in arrays}) > 1:  # a checkpoint may have some in codes
        arrays = tuple(map(as_float32, arrays))
    return np.concatenate(arrays, axis=axis)


# --- gathers ---------------------------------------------------------------------------------------------------------


def infer_take(table: TensorType, ids: TensorType) -> TensorType:
    """Rows of table [V, ...] by ids [M]."""
    require(ids.dtype == I32 and len(ids.shape) == 1, "ids are i32[M]")
    return TensorType(F32, (*ids.shape, *table.shape[1:]))


def evaluate_take(table: Any, ids: Array) -> Array:
    rows: Array = decoded(table)[ids]
    return rows


def infer_scale_rows(x: TensorType, factors: TensorType, positions: TensorType, block: int) -> TensorType:
    """x [T, D], factors [B], positions [T]."""
    require_dtype(F32, x, factors)
    require(positions.dtype == I32 and positions.shape == x.shape[:1], f"positions are i32[{x.shape[0]}]")
    require(len(x.shape) == 2 and len(factors.shape) == 1 and block > 0, "x is [T, D], factors are [B]")
    return x


def evaluate_scale_rows(x: Array, factors: Array, positions: Array, block: int) -> Array:
    """Each row times the factor of its block of positions; the last factor stands for all blocks behind it too."""
    return float32(x * factors[np.minimum(positions // block, len(factors) - 1)][:, None])


def infer_take_along(x: TensorType, ids: TensorType) -> TensorType:
    require(ids.dtype == I32, "ids are i32")
    require(x.shape[:-1] == ids.shape[:-1], "x and ids agree in all but the last dim")
    return TensorType(x.dtype, ids.shape)


def evaluate_take_along(x: Array, ids: Array) -> Array:
    return np.take_along_axis(x, ids, axis=-1)


def infer_put_along(ids: TensorType, values: TensorType, size: int) -> TensorType:
    """Zeros [..., size] with values, broadcast to the shape of ids, written at ids along the last axis."""
    require(ids.dtype == I32, "ids are i32")
    require_dtype(F32, values)
    require(broadcast(ids.shape, values.shape) == ids.shape, f"{values.shape} does not broadcast to {ids.shape}")
    return TensorType(values.dtype, (*ids.shape[:-1], size))


def evaluate_put_along(ids: Array, values: Array, size: int) -> Array:
    result = np.zeros((*ids.shape[:-1], size), values.dtype)
    np.put_along_axis(result, ids, np.broadcast_to(values, ids.shape), axis=-1)
    return result


def infer_top_k(x: TensorType, k: int) -> TensorType:
    require_dtype(F32, x)
    size = x.shape[-1]
    require(isinstance(size, int) and 0 < k <= size, f"cannot pick {k} of {size}")
    return TensorType(I32, (*x.shape[:-1], k))


def evaluate_top_k(x: Array, k: int) -> Array:
    """Indices of the k largest along the last axis, largest first; of equals the lower index comes first."""
    return np.argsort(-x, axis=-1, kind="stable")[..., :k].astype(np.int32)


def infer_top_k_mask(x: TensorType, k: int) -> TensorType:
    require_dtype(F32, x)
    require(k > 0, f"cannot pick {k}")
    return TensorType(BOOL, x.shape)


def evaluate_top_k_mask(x: Array, k: int) -> Array:
    """Whether an element is among the k largest of the last axis; of equals the lower index is, -inf never."""
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    mask = np.zeros(x.shape, np.bool_)
    np.put_along_axis(mask, order, True, axis=-1)
    mask &= x > -np.inf
    return mask


# --- the paged cache (docs/03-one-step.md) ---------------------------------------------------------------------------


def require_paging(positions: TensorType, sequence: TensorType, page_table: TensorType) -> None:
    require_dtype(I32, positions, sequence, page_table)
    require(len(positions.shape) == 1 and positions.shape == sequence.shape, "positions and sequence are [T]")
    require(len(page_table.shape) == 2, "the page table is [S, P]")


def infer_token_slots(
    positions: TensorType, sequence: TensorType, page_table: TensorType, page_size: int
) -> TensorType:
    require_paging(positions, sequence, page_table)
    return TensorType(I32, positions.shape)


def evaluate_token_slots(positions: Array, sequence: Array, page_table: Array, page_size: int) -> Array:
    """Cache row of each token: positions [T], sequence [T], page_table [S, P] -> i32 [T]."""
    slots = page_table[sequence, positions // page_size] * page_size + positions % page_size
    return np.asarray(slots, np.int32)


def infer_context_slots(page_table: TensorType, page_size: int) -> TensorType:
    require_dtype(I32, page_table)
    return TensorType(I32, (dim_product(*page_table.shape, page_size),))


def evaluate_context_slots(page_table: Array, page_size: int) -> Array:
    """Cache rows of all positions of all sequences, sequence by sequence: page_table [S, P] -> i32 [S*P*page_size]."""
    slots = page_table[:, :, None] * page_size + np.arange(page_size)
    return np.asarray(slots.reshape(-1), np.int32)


def infer_context_mask(
    positions: TensorType, sequence: TensorType, page_table: TensorType, page_size: int
) -> TensorType:
    require_paging(positions, sequence, page_table)
    return TensorType(BOOL, (*positions.shape, dim_product(*page_table.shape, page_size)))


def evaluate_context_mask(positions: Array, sequence: Array, page_table: Array, page_size: int) -> Array:
    """bool [T, S*P*page_size]: the row belongs to the token's sequence and lies at or before its position."""
    n_sequences, n_pages = page_table.shape
    row_position = np.tile(np.arange(n_pages * page_size), n_sequences)
    row_sequence = np.repeat(np.arange(n_sequences), n_pages * page_size)
    mask: Array = (row_sequence == sequence[:, None]) & (row_position <= positions[:, None])
    return mask


def infer_chosen_mask(chosen: TensorType, sequence: TensorType, page_table: TensorType, page_size: int) -> TensorType:
    require_dtype(I32, chosen)
    require(len(chosen.shape) == 2, "chosen is [T, k]")
    require_paging(TensorType(I32, chosen.shape[:1]), sequence, page_table)
    return TensorType(BOOL, (chosen.shape[0], dim_product(*page_table.shape, page_size)))


def evaluate_chosen_mask(chosen: Array, sequence: Array, page_table: Array, page_size: int) -> Array:
    """bool [T, S*P*page_size]: the row is one of the positions chosen [T, k] of the token's sequence; -1 is none."""
    length = page_table.shape[1] * page_size
    mask = np.zeros((len(chosen), page_table.shape[0] * length), np.bool_)
    tokens, places = np.nonzero(chosen >= 0)
    mask[tokens, sequence[tokens] * length + chosen[tokens, places]] = True
    return mask


def infer_scatter_rows(cache: TensorType, slots: TensorType, rows: TensorType) -> TensorType:
    require(slots.dtype == I32 and slots.shape == rows.shape[:1], f"slots {slots} do not number the rows {rows.shape}")
    require(cache.shape[1:] == rows.shape[1:], f"rows {rows.shape} do not fit the cache {cache.shape}")
    return cache


def evaluate_scatter_rows(cache: Array, slots: Array, rows: Array) -> Array:
    """The cache [N, L] with rows f32 [T, L] written at slots [T], as its type has them."""
    result = cache.copy()
    result[slots] = stored(rows, cache.dtype)
    return result


TABLE = op_table(
    Op("input", _no_rule, _no_rule, role="leaf"),
    Op("param", _no_rule, _no_rule, role="leaf"),
    Op("const", infer_const, evaluate_const, role="leaf"),
    Op("add", infer_binary, np.add),
    Op("sub", infer_binary, np.subtract),
    Op("mul", infer_binary, np.multiply),
    Op("div", infer_binary, np.divide),
    Op("rsqrt", infer_unary, lambda x: float32(1 / np.sqrt(x))),
    Op("sigmoid", infer_unary, evaluate_sigmoid),
    Op("relu", infer_unary, evaluate_relu),
    Op("cos", infer_unary, np.cos),
    Op("sin", infer_unary, np.sin),
    Op("cast", infer_cast, lambda x, dtype: x.astype(CAST_DTYPES[dtype])),
    Op("where", infer_where, evaluate_where),
    Op("mean", infer_reduce, lambda x, axis, keepdims: float32(x.mean(axis=axis, keepdims=keepdims))),
    Op("sum", infer_reduce, lambda x, axis, keepdims: float32(x.sum(axis=axis, keepdims=keepdims))),
    Op("max", infer_reduce, lambda x, axis, keepdims: x.max(axis=axis, keepdims=keepdims)),
    Op("softmax", infer_unary, evaluate_softmax),
    Op("matmul", infer_matmul, np.matmul),
    Op("linear", infer_linear, evaluate_linear),
    Op("reshape", infer_reshape, evaluate_reshape, role="view"),
    Op("transpose", infer_transpose, lambda x, axes: x.transpose(axes)),
    Op("slice", infer_slice, evaluate_slice, role="view"),
    Op("concat", infer_concat, evaluate_concat),
    Op("take", infer_take, evaluate_take),
    Op("scale_rows", infer_scale_rows, evaluate_scale_rows),
    Op("take_along", infer_take_along, evaluate_take_along),
    Op("put_along", infer_put_along, evaluate_put_along),
    Op("top_k", infer_top_k, evaluate_top_k),
    Op("top_k_mask", infer_top_k_mask, evaluate_top_k_mask),
    Op("token_slots", infer_token_slots, evaluate_token_slots),
    Op("context_slots", infer_context_slots, evaluate_context_slots),
    Op("context_mask", infer_context_mask, evaluate_context_mask),
    Op("chosen_mask", infer_chosen_mask, evaluate_chosen_mask),
    Op("scatter_rows", infer_scatter_rows, evaluate_scatter_rows, in_place=True),
)
