"""Tiles by cooperative matrices (VK_KHR_cooperative_matrix): float16 factors, float32 sums.

How large the matrices are, and what square of the tile a subgroup has, is known when a device loads the kernel: loops
run to functions that name these constants, see `Size`.

float16 ends at 65504 and is exact to 2^-11 only down to 2^-14, below which a device may make it zero. So every row of
either side is multiplied by a power of two that puts its largest magnitude just below 2^15, and every sum by the powers
of its two rows. What is lost of a factor is then at most 2^-11 of it, or 2^-28 of the largest in its row; of codes, of
the largest that the factors of the row could give. Activations are rounded to nearest, and weights with a factor for
each group along K; codes with one factor a row but NF4, float16 and bfloat16 are exact. float32 weights have no such
form.

To find the largest, activations and float weights are read once more, of codes only the factors.

How a matrix lies in the registers of its threads is not known, so the sums go through shared memory, a quarter of the
tile at a time: the form has less than 16 KiB of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2

from dsv3c.compiler.formats.grids import NF4
from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr, barrier, f32, local, shared, store
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, K_TILE, SLICES, TILE, Factors, Keep
from dsv3c.targets.gpu.kernels.weights import Weight

STRIDE = K_TILE // 2 + 4  # pairs of a staged row, whole multiples of 16 bytes; four more against bank conflicts
SUM_ROWS = 16  # of the tile, whose sums are in shared memory at a time; a multiple of M
SUM_STRIDE = TILE + 4
TOP = 14  # every row is scaled so that its largest magnitude lies in [2^TOP, 2^(TOP + 1)), or would by its factors

# Scopes of buffers whose elements are matrices: sums [M, N], activations [M, K], weights [K, N].
SUMS, LEFT, RIGHT = "matrix.sums", "matrix.left", "matrix.right"

# Functions that the language is given.
SUBGROUP = "dsv3c_subgroup"  # () -> number of the subgroup in its workgroup
PAIR = "dsv3c_f16x2"  # (float32, float32) -> both as float16
CLEAR = "dsv3c_matrix_clear"  # (matrix)
LOAD_LEFT, LOAD_RIGHT = "dsv3c_matrix_load_left", "dsv3c_matrix_load_right"  # (matrix, staged row at a k, stride)
MULTIPLY_ADD = "dsv3c_matrix_multiply_add"  # (sums, left, right)
STORE = "dsv3c_matrix_store"  # (sums, element of shared memory, stride)


class Size:
    """Functions without arguments, which the device's runtime makes constants: rows, columns and inner size of the
    matrices; rows and columns of what a subgroup has of the tile, the subgroups along columns first."""

    M, N, K = "dsv3c_matrix_m", "dsv3c_matrix_n", "dsv3c_matrix_k"
    ROWS, COLUMNS = "dsv3c_subgroup_rows", "dsv3c_subgroup_columns"


@dataclass(frozen=True)
class _Space:
    """Shared memory: pairs of float16 [TILE, STRIDE] of either side; sums f32 [SUM_ROWS, SUM_STRIDE], before them
    magnitudes [LANES or less, TILE]; f32 [2, TILE] by which sums are multiplied, of activation rows and weight rows."""

    rows: Buffer
    weights: Buffer
    sums: Buffer
    factors: Buffer


@dataclass(frozen=True)
class CooperativeMatrices:
    """A `Unit`."""

    capability: str = COOPERATIVE_MATRIX

    def serves(self, weight: WeightFormat) -> bool:
        return weight.element != "f32"

    def space(self) -> _Space:
        pairs = [shared(TILE * STRIDE, "float16x2") for _ in range(2)]
        return _Space(pairs[0], pairs[1], shared(SUM_ROWS * SUM_STRIDE), shared(2 * TILE))

    def product(self, factors: Factors, thread: Expr, space: _Space, keep: Keep) -> None:
        own = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
        starts = [factors.start(T.bind(turn * SLICES + own[1])) for turn in range(TILE // SLICES)]
        _scale_rows(factors, starts, (thread, *own), space)
        _scale_weights(factors.weight, factors.block, (thread, *own), space)
        scales = [_inverse(space.factors[turn * SLICES + own[1]]) for turn in range(TILE // SLICES)]
        matrices = _Matrices()
        with T.serial(0, factors.steps) as step:
            _stage_weights(factors, step, own, space)
            for turn, (start, scale) in enumerate(zip(starts, scales, strict=True)):
                low = T.bind(step * K_TILE + own[0] * 2)
                found = [factors.x[start + T.min(low + i, factors.weight.k - 1)] for i in range(2)]
                pair = _pair(*(_rounded(value * scale) for value in found))
                store(space.rows, (turn * SLICES + own[1]) * STRIDE + own[0], pair)
            barrier()
            matrices.multiply(space)
            barrier()
        with T.serial(0, TILE // SUM_ROWS) as quarter:
            first = T.bind(quarter * SUM_ROWS)
            matrices.store(first, space.sums)
            barrier()
            _keep(first, own, space, keep)
            barrier()


class _Matrices:
    """What a subgroup has of the tile; all sums are zero when it is made."""

    def __init__(self) -> None:
        self._m, self._n, self._k = (_size(name) for name in (Size.M, Size.N, Size.K))
        rows, columns = _size(Size.ROWS), _size(Size.COLUMNS)
        self._high, self._wide = T.floordiv(rows, self._m), T.floordiv(columns, self._n)
        self._sums, self._left, self._right = (_matrices(scope) for scope in (SUMS, LEFT, RIGHT))
        number, across = T.bind(T.call_extern("int32", SUBGROUP)), T.bind(T.floordiv(T.int32(TILE), columns))
        self._row = T.bind(T.floordiv(number, across) * rows)
        self._column = T.bind(T.floormod(number, across) * columns)
        with T.unroll(0, self._high * self._wide) as at:
            _call(CLEAR, self._sums[at])

    def multiply(self, space: _Space) -> None:
        """Add the products of what is staged."""
        with T.unroll(0, T.floordiv(T.int32(K_TILE), self._k)) as part:
            k = T.bind(T.floordiv(part * self._k, 2))
            with T.unroll(0, self._high) as i:
                _call(LOAD_LEFT, self._left[i], space.rows[(self._row + i * self._m) * STRIDE + k], STRIDE)
            with T.unroll(0, self._wide) as j:
                _call(LOAD_RIGHT, self._right[0], space.weights[(self._column + j * self._n) * STRIDE + k], STRIDE)
                with T.unroll(0, self._high) as i:
                    _call(MULTIPLY_ADD, self._sums[i * self._wide + j], self._left[i], self._right[0])

    def store(self, first: Expr, space: Buffer) -> None:
        """The sums of SUM_ROWS rows of the tile into shared memory; first: a multiple of as many."""
        with T.unroll(0, self._high) as i:
            row = T.bind(self._row + i * self._m - first)
            with T.If(T.And(row >= 0, row < SUM_ROWS)), T.Then():
                with T.unroll(0, self._wide) as j:
                    place = space[row * SUM_STRIDE + self._column + j * self._n]
                    _call(STORE, self._sums[i * self._wide + j], place, SUM_STRIDE)


def _scale_rows(factors: Factors, starts: Sequence[Expr], own: tuple[Expr, Expr, Expr], space: _Space) -> None:
    """Find the powers of two of activation rows. own: thread, lane, slice."""
    thread, lane, part = own
    k, largest = factors.weight.k, local(len(starts))
    for turn in range(len(starts)):
        store(largest, turn, f32(0))
    with T.serial(0, -(-k // LANES)) as step:
        column = T.bind(T.min(step * LANES + lane, k - 1))
        for turn, start in enumerate(starts):
            store(largest, turn, T.max(largest[turn], _magnitude(factors.x[start + column])))
    for turn in range(len(starts)):
        store(space.sums, lane * TILE + turn * SLICES + part, largest[turn])
    _gather(thread, LANES, lambda found: _power(found, TOP), space, 0)


def _scale_weights(weight: Weight, block: Callable[[Expr], Expr], own: tuple[Expr, Expr, Expr], space: _Space) -> None:
    """Find what the sums of weight rows are multiplied by: the factor of a row, else a power of two."""
    thread, lane, part = own
    if weight.scale is not None and weight.groups == 1:
        with T.If(thread < TILE), T.Then():
            store(space.factors, TILE + thread, weight.factor(block(part), T.int32(0), lane))
        barrier()
        return
    coded = weight.scale is not None
    count, largest = weight.groups if coded else weight.chunks, local(BLOCKS)
    for i in range(BLOCKS):
        store(largest, i, f32(0))
    with T.serial(0, -(-count // SLICES)) as step:
        at = T.bind(T.min(step * SLICES + part, count - 1))
        for i in range(BLOCKS):
            own_block = block(T.int32(i))
            values = [weight.factor(own_block, at, lane)] if coded else weight.decode(own_block, at, lane)[0]
            for value in values:
                store(largest, i, T.max(largest[i], _magnitude(value)))
    for i in range(BLOCKS):
        store(space.sums, part * TILE + i * LANES + lane, largest[i])
    top = TOP - ceil(log2(weight.format.largest)) if coded else TOP
    _gather(thread, SLICES, lambda found: _power(found, top), space, TILE)


def _gather(thread: Expr, count: int, power: Callable[[Expr], Expr], space: _Space, first: int) -> None:
    """factors[first + row] = power(largest of the `count` magnitudes of a row), seen by all threads after."""
    barrier()
    with T.If(thread < TILE), T.Then():
        found = T.bind(space.sums[thread])
        for i in range(1, count):
            found = T.bind(T.max(found, space.sums[i * TILE + thread]))
        store(space.factors, first + thread, power(found))
    barrier()


def _stage_weights(factors: Factors, step: Expr, own: tuple[Expr, Expr], space: _Space) -> None:
    """K_TILE values of K of all blocks, scaled; zero where K has ended. own: row in a block and slice of a thread."""
    lane, part = own
    weight = factors.weight
    size = max(weight.chunk, 2)  # values that a thread stages together
    per_block = K_TILE // size
    for turn in range(BLOCKS * per_block // SLICES):
        item = T.bind(turn * SLICES + part)
        i, within = T.bind(T.floordiv(item, per_block)), T.bind(T.floormod(item, per_block))
        row, block = T.bind(i * LANES + lane), factors.block(i)
        values: list[Expr] = []
        for number in range(size // weight.chunk):
            chunk = T.bind((step * per_block + within) * (size // weight.chunk) + number)
            values += _scaled(weight, block, chunk, lane, space.factors[TILE + row])
        for j in range(size // 2):
            store(space.weights, row * STRIDE + within * (size // 2) + j, _pair(*values[2 * j : 2 * j + 2]))


def _scaled(weight: Weight, block: Expr, chunk: Expr, lane: Expr, power: Expr) -> list[Expr]:
    """The values of a chunk as they are staged."""
    whole = weight.chunks * weight.chunk % K_TILE == 0
    held = chunk if whole else T.bind(T.min(chunk, weight.chunks - 1))
    values, factor = weight.decode(block, held, lane)
    if factor is None:
        scale = _inverse(power)
        values = [value * scale for value in values]
    elif weight.groups > 1:
        scale = T.bind(factor * _inverse(power))
        values = [_rounded(value * scale) for value in values]
    elif isinstance(weight.format.grid, NF4):
        values = [_rounded(value) for value in values]
    return values if whole else [T.Select(chunk < weight.chunks, value, f32(0)) for value in values]


def _keep(first: Expr, own: tuple[Expr, Expr], space: _Space, keep: Keep) -> None:
    """Hand over the sums of SUM_ROWS rows from `first` on."""
    lane, part = own
    with T.serial(0, SUM_ROWS // SLICES) as turn:
        within = T.bind(turn * SLICES + part)
        row = T.bind(first + within)
        for pair in range(BLOCKS // 2):
            columns = [T.bind((pair * 2 + i) * LANES + lane) for i in range(2)]
            low, high = (
                T.bind(space.sums[within * SUM_STRIDE + n] * space.factors[row] * space.factors[TILE + n])
                for n in columns
            )
            keep(row, T.int32(pair), lane, (low, high))


def _magnitude(x: Expr) -> Expr:
    x = T.bind(x)
    return T.max(x, f32(0) - x)


def _power(largest: Expr, top: int) -> Expr:
    """The power of two that takes a number in [2^top, 2^(top + 1)) to `largest`; at least the smallest normal one."""
    exponent = T.bind(T.shift_right(T.reinterpret("uint32", largest), T.uint32(23)))
    return T.reinterpret("float32", T.shift_left(T.max(exponent, T.uint32(top + 1)) - T.uint32(top), T.uint32(23)))


def _inverse(power: Expr) -> Expr:
    """1 / power, for a power of two whose inverse is normal."""
    return T.bind(T.reinterpret("float32", T.uint32(254 << 23) - T.reinterpret("uint32", T.bind(power))))


def _rounded(x: Expr) -> Expr:
    """x with the eleven bits of a float16, to nearest even: a device might take either neighbour of a float32."""
    bits = T.bind(T.reinterpret("uint32", T.bind(x)))
    odd = T.bitwise_and(T.shift_right(bits, T.uint32(13)), T.uint32(1))
    return T.bind(T.reinterpret("float32", T.bitwise_and(bits + T.uint32(0xFFF) + odd, T.uint32(0xFFFFE000))))


def _pair(low: Expr, high: Expr) -> Expr:
    return T.call_extern("float16x2", PAIR, low, high)


def _size(name: str) -> Expr:
    return T.call_extern("int32", name)


def _matrices(scope: str) -> Buffer:
    """As many as a subgroup has of the kind, of weights one."""
    return T.alloc_buffer((1,), "float32" if scope == SUMS else "float16", scope=scope)


def _call(name: str, *arguments: Expr) -> None:
    """A function of matrices and of places in shared memory, both as elements of a buffer."""
    places = [value if isinstance(value, int) else T.address_of(value) for value in arguments]
    T.evaluate(T.call_extern("void", name, *places))
