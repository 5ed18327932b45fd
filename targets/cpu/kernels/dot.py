"""Products of activation rows with blocks of sixteen packed weight rows (layout rows16), for every weight format.

A tile is `len(blocks)` weight blocks by `len(rows)` activation rows. Its sums live in registers while the blocks stream
by once, K from start to end. Integer formats sum each activation group in int32, exactly, and scale it in float32; the
order of float additions does not depend on the tile or the instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.quant import QuantSpec
from dsv3c.compiler.formats.rows16 import LANES, padded_rows
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import View
from dsv3c.targets.cpu.intrinsics import DOT4, bf16_pair_to_f32, prefetch
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import mmla
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32, store

Expr = Any

LINE = 64  # bytes of a cache line

SIGN = 128  # what an unsigned 8-bit code loses when it becomes a signed one


@dataclass(frozen=True)
class Weight:
    """The buffers of a packed weight [..., n, k] under `role`. Blocks are numbered through the leading dims."""

    spec: QuantSpec
    n: int
    k: int
    data: Buffer
    scale: Buffer  # None for floats
    zero: Buffer  # None unless asymmetric

    @classmethod
    def of(cls, buffers: dict[str, Buffer], role: str, spec: QuantSpec, n: int, k: int) -> Weight:
        components = [buffers.get(f"{role}.{name}") for name in ("data", "scale", "zero")]
        return cls(spec, n, k, *components)

    @property
    def blocks(self) -> int:
        """Blocks of one [n, k] matrix."""
        return padded_rows(self.n) // LANES

    def together(self, level: IsaLevel) -> int:
        """Blocks that share a tile: what the level has registers for, if it divides the number of blocks.

        One of floats, which take several times the cache.
        """
        wanted = 1 if self.spec.is_float else level.tuning.row_blocks
        return wanted if self.blocks % wanted == 0 else 1

    @property
    def block_size(self) -> int:
        """Elements of `data` in one block."""
        k = self.spec.padded_k(self.k)
        return k * LANES * self.spec.bits // 8 if not self.spec.is_float else k * LANES

    def start(self, block: Expr) -> Expr:
        """Offset of a block in `data`: 64-bit, as stacked experts pass 2^31 elements."""
        return T.bind(T.Cast("int64", block) * T.int64(self.block_size))

    def scale_start(self, block: Expr) -> Expr:
        return T.bind(T.Cast("int64", block) * T.int64(self.spec.scale_groups(self.k) * LANES))


@dataclass(frozen=True)
class Activation:
    """Rows to multiply: float32 through a view, or q8 with contiguous rows of `padded` codes and `groups` scales."""

    data: Buffer
    view: View
    scale: Buffer = None
    sum: Buffer = None

    @classmethod
    def of(cls, buffers: dict[str, Buffer], role: str, spec: QuantSpec, k: int, view: View) -> Activation:
        if spec.is_float:
            return cls(buffers[role], view)
        contiguous = View(spec.padded_k(k))
        return cls(buffers[f"{role}.data"], contiguous, buffers[f"{role}.scale"], buffers[f"{role}.sum"])


def tile_number(indices: list[Expr]) -> Expr | None:
    """Which tile has the rows `indices`; None for a single row, which streams by too fast to fetch more meanwhile."""
    return T.bind(T.floordiv(indices[0], len(indices))) if len(indices) > 1 else None


@dataclass(frozen=True)
class Tile:
    """Sums of a finished tile; vectors of `lanes` rows of a block start at 0, lanes, … below 16."""

    sums: list[list[Buffer]]  # [block][row], float32 of 16
    lanes: int

    def part(self, block: int, row: int, at: int) -> Expr:
        return load(self.sums[block][row], at, self.lanes)


def dot_tile(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    blocks: list[Expr],
    rows: list[tuple[Expr, Expr]],
    number: Expr | None = None,
) -> Tile:
    """Emit the products of weight `blocks` with activation `rows`, each (row, head) of the view (q8: head is 0).

    number: which tile of these blocks it is; if given, the tiles fetch the next of each block line by line meanwhile,
    integer formats only. The kernel must import PREFETCH_IR.
    """
    sums = [[local("f32", LANES) for _ in rows] for _ in blocks]
    tile = Tile(sums, level.lanes)
    parts = range(0, LANES, level.lanes)
    for buffer in (buffer for row in sums for buffer in row):
        for part in parts:
            store(buffer, part, f32(0, level.lanes), level.lanes)
    starts = [w.start(block) for block in blocks]
    x_starts = [T.bind(x.view.start(row, head)) for row, head in rows]
    if w.spec.is_float:
        _float_dot(level, w, x, starts, x_starts, tile)
        return tile
    scale_starts = [w.scale_start(block) for block in blocks]
    _integer_dot(level, w, x, starts, scale_starts, x_starts, [row for row, _ in rows], tile, number)
    return tile


def store_tile(tile: Tile, y: Buffer, block: Expr, n: int, offsets: list[Expr], which: int = 0) -> None:
    """y[offset + row] = sum for the rows of `block` below n, for each activation row's `offset`."""

    def write(row: int, offset: Expr, at: int, lanes: int) -> None:
        store(y, offset + block * LANES + at, load(tile.sums[which][row], at, lanes), lanes)

    store_block(tile.lanes, block, n, offsets, write)


def store_block(
    lanes: int, block: Expr, n: int, offsets: list[Expr], write: Callable[[int, Expr, int, int], None]
) -> None:
    """write(row, offset, at, lanes) for the rows of a block below n: whole parts, or one by one in the last block."""

    def whole() -> None:
        for row, offset in enumerate(offsets):
            for part in range(0, LANES, lanes):
                write(row, offset, part, lanes)

    tail = n % LANES
    if tail == 0:
        whole()
        return
    with T.If(block < n // LANES):
        with T.Then():
            whole()
        with T.Else():
            for row, offset in enumerate(offsets):
                for at in range(tail):
                    write(row, offset, at, 1)


def _accumulate(buffer: Buffer, part: int, a: Expr, b: Expr, lanes: int) -> None:
    store(buffer, part, a * b + load(buffer, part, lanes), lanes)


def _float_dot(level: IsaLevel, w: Weight, x: Activation, starts: list[Expr], x_starts: list[Expr], tile: Tile) -> None:
    # A second chain of sums hides the latency of FMA where there are registers for it.
    second = level.lanes == LANES
    odd = [[local("f32", LANES) for _ in x_starts] for _ in starts] if second else tile.sums
    for buffer in (buffer for row in odd for buffer in row if second):
        store(buffer, 0, f32(0, LANES), LANES)

    def step(column: Expr, width: int) -> None:
        """`width` columns from `column` on."""
        values = [
            [T.bind(T.broadcast(x.data[start + column + i], level.lanes)) for i in range(width)] for start in x_starts
        ]
        for block, start in enumerate(starts):
            for part in range(0, LANES, level.lanes):
                weights = _float_columns(w, start, column, width, part, level.lanes)
                for row, row_values in enumerate(values):
                    chains = (tile.sums[block][row], odd[block][row])
                    for i, (value, weight) in enumerate(zip(row_values, weights, strict=True)):
                        _accumulate(chains[i % 2], part, weight, value, level.lanes)

    unroll = level.tuning.float_unroll
    whole = w.k // unroll
    if whole:
        with T.serial(0, whole) as i:
            step(i * unroll, unroll)
    if w.k % unroll:
        step(T.int32(whole * unroll), w.k % unroll)
    for block, row in ((b, r) for b in range(len(starts)) for r in range(len(x_starts)) if second):
        total = load(tile.sums[block][row], 0, LANES) + load(odd[block][row], 0, LANES)
        store(tile.sums[block][row], 0, total, LANES)


def _float_columns(w: Weight, start: Expr, column: Expr, width: int, part: int, lanes: int) -> list[Expr]:
    """float32 vectors of `width` columns of one part of a block."""
    if w.spec.element != "bf16":
        at = start + T.Cast("int64", column) * LANES + part
        return [T.bind(load_f32(w.data, at + i * LANES, lanes, w.spec.element)) for i in range(width)]
    out: list[Expr] = []
    for i in range(0, width, 2):
        at = start + T.Cast("int64", column + i) * LANES + 2 * part
        words = T.bind(T.reinterpret(f"uint32x{lanes}", load(w.data, at, 2 * lanes)))
        out.extend(T.bind(half) for half in bf16_pair_to_f32(words, lanes))
    return out[:width]


def _integer_dot(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    starts: list[Expr],
    scale_starts: list[Expr],
    x_starts: list[Expr],
    rows: list[Expr],
    tile: Tile,
    number: Expr | None,
) -> None:
    spec, lanes = w.spec, level.lanes
    group = spec.act_group
    groups = spec.padded_k(w.k) // group
    parts = range(0, LANES, lanes)
    sums = [[local("i32", LANES) for _ in rows] for _ in starts]
    scales = [T.bind(row * groups) for row in rows]
    with T.serial(0, groups) as g:
        if number is not None:
            _fetch(w, number, starts, groups, g)
        for row, scale in enumerate(scales):
            total = T.bind(x.sum[scale + g])
            for block in range(len(starts)):
                for part in parts:
                    store(sums[block][row], part, _offset(level, w, scale_starts[block], g, part, total), lanes)
        if level.mmla and len(rows) % 2 == 0:
            codes = _columns_of(level, w, starts)
            mmla.add_products(level.mmla, codes, x.data, g * group, group, x_starts, sums)
        else:
            _dot_words(level, w, x, g, starts, x_starts, sums)
        for row, scale in enumerate(scales):
            x_scale = T.bind(T.broadcast(x.scale[scale + g], lanes))
            for block in range(len(starts)):
                for part in parts:
                    factor = x_scale
                    if spec.group:
                        at = scale_starts[block] + T.Cast("int64", g) * LANES + part
                        factor = load_f32(w.scale, at, lanes, spec.scale_dtype) * x_scale
                    exact = T.Cast(f"float32x{lanes}", load(sums[block][row], part, lanes))
                    _accumulate(tile.sums[block][row], part, exact, factor, lanes)
    if spec.group:
        return
    for block, row_sums in enumerate(tile.sums):
        for buffer in row_sums:
            for part in parts:
                scale = load(w.scale, scale_starts[block] + part, lanes)
                store(buffer, part, load(buffer, part, lanes) * scale, lanes)


def _fetch(w: Weight, number: Expr, starts: list[Expr], groups: int, g: Expr) -> None:
    """One line for each block in each group: few enough for the loads of the tile itself never to wait behind them."""
    line = T.bind((number * groups + g) * LINE)
    with T.If(line < w.block_size):
        with T.Then():
            for start in starts:
                prefetch(w.data, start + T.int64(w.block_size) + T.Cast("int64", line))


def _offset(level: IsaLevel, w: Weight, scale_start: Expr, g: Expr, part: int, total: Expr) -> Expr:
    """-zero point * total of one part of a block as int32 lanes: what an integer sum of group g starts from."""
    lanes = level.lanes
    if w.zero is None:
        taken = SIGN if _is_signed(level, w.spec) else 0
        return T.broadcast(total * (taken - w.spec.zero_point), lanes)
    at = scale_start + T.Cast("int64", g) * LANES + part
    return T.Cast(f"int32x{lanes}", load(w.zero, at, lanes)) * T.broadcast(0 - total, lanes)


def _dot_words(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    g: Expr,
    starts: list[Expr],
    x_starts: list[Expr],
    sums: list[list[Buffer]],
) -> None:
    """Add the products of group g."""
    words = w.spec.act_group * w.spec.bits // 32
    unroll = min(level.tuning.word_unroll, words)
    with T.serial(0, words // unroll) as chunk:
        for i in range(unroll):
            _dot_word(level, w, x, g * words + chunk * unroll + i, starts, x_starts, sums)


def _dot_word(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    word: Expr,
    starts: list[Expr],
    x_starts: list[Expr],
    sums: list[list[Buffer]],
) -> None:
    """Add the products of one 64-byte weight word (4 columns of int8, 8 of int4) per block."""
    lanes, dot4 = level.lanes, DOT4[level.dot].emit
    halves = 32 // w.spec.bits // 4  # groups of four columns in a word
    x_words = [
        [T.bind(T.reinterpret("int32", load(x.data, start + (word * halves + half) * 4, 4))) for half in range(halves)]
        for start in x_starts
    ]
    for block, start in enumerate(starts):
        if len(x_starts) == 1:
            # A row alone is as fast as memory, and the hardware's own prefetching stops at the end of each page.
            prefetch(w.data, start + T.Cast("int64", word) * LINE + T.int64(level.tuning.prefetch_bytes))
        for part in range(0, LANES, lanes):
            for half, operand in enumerate(_word(level, w, start, word, part)):
                for row, row_words in enumerate(x_words):
                    acc = load(sums[block][row], part, lanes)
                    store(sums[block][row], part, dot4(acc, operand, row_words[half]), lanes)


def _word(level: IsaLevel, w: Weight, start: Expr, word: Expr, part: int) -> list[Expr]:
    """One part of a 64-byte word of the block at `start`, four columns to an element of the list."""
    at = start + T.Cast("int64", word) * (LANES * 4) + part * 4
    codes = T.bind(T.reinterpret(f"uint32x{level.lanes}", load(w.data, at, 4 * level.lanes)))
    return _unpacked(level, codes, w.spec)


def _columns_of(level: IsaLevel, w: Weight, starts: list[Expr]) -> mmla.Codes:
    """Eight columns of a block as two groups of four: one word of int4, two of int8."""

    def codes(block: int, column: Expr, part: int) -> tuple[Expr, Expr]:
        words = range(w.spec.bits // 4)
        first = T.floordiv(column * w.spec.bits, 32)
        low, high = (half for i in words for half in _word(level, w, starts[block], first + i, part))
        return low, high

    return codes


def _is_signed(level: IsaLevel, spec: QuantSpec) -> bool:
    """Whether the level's products want codes less SIGN. Those of four bits are the same either way."""
    return spec.bits == 8 and DOT4[level.dot].signed


def _unpacked(level: IsaLevel, codes: Expr, spec: QuantSpec) -> list[Expr]:
    """uint32 lanes of four 8-bit codes each: one vector for int8, low then high nibbles for int4."""
    lanes = level.lanes
    if _is_signed(level, spec):
        return [T.bind(T.bitwise_xor(codes, T.broadcast(T.uint32(SIGN * 0x01010101), lanes)))]
    if spec.bits == 8:
        return [codes]
    nibbles = T.broadcast(T.uint32(0x0F0F0F0F), lanes)
    four = T.broadcast(T.uint32(4), lanes)
    return [
        T.bind(T.bitwise_and(codes, nibbles)),
        T.bind(T.bitwise_and(T.shift_right(codes, four), nibbles)),
    ]
