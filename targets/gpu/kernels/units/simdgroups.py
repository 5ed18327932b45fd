"""Tiles by Metal's SIMD group matrices: 8 x 8 float32, which changes nothing but the order of sums.

Weights are staged with their factors. Each SIMD group adds up a square of 32 x 32 in sixteen matrices. How a matrix
lies in the registers of its threads is not known (Metal Shading Language Specification 2.3, 6.7), so the sums go
through shared memory, in place of what was staged there.

float16 factors would take half of the shared memory, but activations above 65504 would be lost, and MSL 2.3 has no
bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.formats.rows16 import LANES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.gpu.capabilities import SIMDGROUP_MATRIX
from dsv3c.targets.gpu.kernels.frame import Buffer, Expr, barrier, f32, shared, store
from dsv3c.targets.gpu.kernels.units.unit import BLOCKS, K_TILE, SIDE, SLICES, TILE, Factors, Keep

EDGE = 8  # of a matrix
PER_SIDE = SIDE // EDGE
WEIGHT_STRIDE = TILE + 4  # of a row of staged weights, which is one k; four more against bank conflicts
ROW_STRIDE = K_TILE + 4
SUM_STRIDE = TILE + 4
ROWS = K_TILE * WEIGHT_STRIDE  # where staged activation rows begin
SPACE = max(ROWS + TILE * ROW_STRIDE, TILE * SUM_STRIDE)


@dataclass(frozen=True)
class SimdgroupMatrices:
    """A `Unit`."""

    capability: str = SIMDGROUP_MATRIX

    def serves(self, weight: WeightFormat) -> bool:
        return True

    def space(self) -> Buffer:
        return shared(SPACE)

    def product(self, factors: Factors, thread: Expr, space: Buffer, keep: Keep) -> None:
        lane, part = T.bind(T.bitwise_and(thread, T.int32(LANES - 1))), T.bind(T.shift_right(thread, T.int32(4)))
        group = T.bind(T.shift_right(thread, T.int32(5)))
        row, column = T.bind(T.bitwise_and(group, T.int32(1)) * SIDE), T.bind(T.shift_right(group, T.int32(1)) * SIDE)
        starts = [factors.start(T.bind(turn * SLICES + part)) for turn in range(TILE // SLICES)]
        sums, left, right = (_matrices(count) for count in (PER_SIDE * PER_SIDE, PER_SIDE, PER_SIDE))
        for i in range(PER_SIDE * PER_SIDE):
            T.evaluate(T.metal.make_filled_simdgroup_matrix(sums.data, i, f32(0), EDGE, EDGE))
        with T.serial(0, factors.steps) as step:
            _stage_weights(factors, step, (lane, part), space)
            for turn, start in enumerate(starts):
                for half in range(K_TILE // LANES):
                    k = T.bind(half * LANES + lane)
                    value = factors.x[start + T.min(step * K_TILE + k, factors.weight.k - 1)]
                    store(space, ROWS + (turn * SLICES + part) * ROW_STRIDE + k, value)
            barrier()
            with T.serial(0, K_TILE // EDGE) as part_of_k:
                k = T.bind(part_of_k * EDGE)
                for i in range(PER_SIDE):
                    _load(left, i, space, ROWS + (row + i * EDGE) * ROW_STRIDE + k, ROW_STRIDE)
                    _load(right, i, space, k * WEIGHT_STRIDE + column + i * EDGE, WEIGHT_STRIDE)
                for i in range(PER_SIDE):
                    for j in range(PER_SIDE):
                        at = i * PER_SIDE + j
                        T.evaluate(
                            T.metal.simdgroup_multiply_accumulate(
                                sums.data, at, left.data, i, right.data, j, sums.data, at
                            )
                        )
            barrier()
        for i in range(PER_SIDE):
            for j in range(PER_SIDE):
                place = T.address_of(space[(row + i * EDGE) * SUM_STRIDE + column + j * EDGE])
                T.evaluate(T.metal.simdgroup_store(sums.data, i * PER_SIDE + j, place, SUM_STRIDE, EDGE, EDGE))
        barrier()
        with T.serial(0, TILE // SLICES) as turn:
            own = T.bind(turn * SLICES + part)
            for pair in range(BLOCKS // 2):
                at = T.bind(own * SUM_STRIDE + pair * 2 * LANES + lane)
                keep(own, T.int32(pair), lane, (T.bind(space[at]), T.bind(space[at + LANES])))


def _matrices(count: int) -> Buffer:
    return T.alloc_buffer((count, EDGE, EDGE), "float32", scope="metal.simdgroup")


def _load(matrices: Buffer, i: int, space: Buffer, at: Expr, stride: int) -> None:
    T.evaluate(T.metal.simdgroup_load(matrices.data, i, T.address_of(space[at]), stride, EDGE, EDGE))


def _stage_weights(factors: Factors, step: Expr, own: tuple[Expr, Expr], space: Buffer) -> None:
    """K_TILE values of K of all blocks, with their factors; zero where K has ended. own: lane, slice of a thread."""
    lane, part = own
    weight = factors.weight
    per_block = K_TILE // weight.chunk
    for turn in range(BLOCKS * per_block // SLICES):
        item = T.bind(turn * SLICES + part)
        i, within = T.bind(T.floordiv(item, per_block)), T.bind(T.floormod(item, per_block))
        chunk = T.bind(step * per_block + within)
        held = chunk if weight.chunks % per_block == 0 else T.bind(T.min(chunk, weight.chunks - 1))
        values, factor = weight.decode(factors.block(i), held, lane)
        for j, value in enumerate(values):
            scaled = value if factor is None else value * factor
            inside = scaled if held is chunk else T.Select(chunk < weight.chunks, scaled, f32(0))
            store(space, (within * weight.chunk + j) * WEIGHT_STRIDE + i * LANES + lane, inside)
