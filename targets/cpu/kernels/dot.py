"""Products of activation rows with blocks of sixteen packed weight rows (layout rows16), for every weight format.

A tile is `len(blocks)` weight blocks by `len(rows)` activation rows. Its sums live in registers while the blocks stream
by once, K from start to end. Integer formats sum each activation group in int32, exactly, and scale it in float32; the
order of float additions does not depend on the tile or the instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Any

from dsv3c.compiler.formats.packings import QUAD
from dsv3c.compiler.formats.rows16 import LANES, elements_of
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import View
from dsv3c.targets.cpu.intrinsics import DOT4, bf16_pair_to_f32
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import mmla
from dsv3c.targets.cpu.kernels.coded import coded_dot
from dsv3c.targets.cpu.kernels.fetch import Fetch, Turn, fetching
from dsv3c.targets.cpu.kernels.frame import Buffer, local
from dsv3c.targets.cpu.kernels.vector import f32, load, load_f32, store
from dsv3c.targets.cpu.kernels.weights import Weight, columns_quads, eight_columns

Expr = Any

SIGN = 128  # what an unsigned 8-bit code loses when it becomes a signed one


@dataclass(frozen=True)
class Activation:
    """Rows to multiply: float32 through a view, or q8 with contiguous rows of `padded` codes and `groups` scales."""

    data: Buffer
    view: View
    scale: Buffer = None
    sum: Buffer = None

    @classmethod
    def of(cls, buffers: dict[str, Buffer], role: str, format: WeightFormat, k: int, view: View) -> Activation:
        if not format.integer_products:
            return cls(buffers[role], view)
        contiguous = View(format.padded_k(k))
        return cls(buffers[f"{role}.data"], contiguous, buffers[f"{role}.scale"], buffers[f"{role}.sum"])


def tile_rows(level: IsaLevel, w: Weight) -> int:
    """Activation rows of a tile, whose sums registers hold: fewer where these take more than one register."""
    narrow = DOT4[level.dot].narrow if w.format.integer_products else None
    if narrow is None or not narrow.most(w.integer_bits):
        return level.tuning.token_tile
    return max(1, level.tuning.token_tile // narrow.registers)


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
    turn: Turn | None = None,
) -> Tile:
    """Emit the products of weight `blocks` with activation `rows`, each (row, head) of the view (q8: head is 0).

    turn: of a tile of several rows, by which integer formats fetch weights ahead. Codes that stand for floats take one
    row. The kernel must import PREFETCH_IR.
    """
    sums = [[local("f32", LANES) for _ in rows] for _ in blocks]
    tile = Tile(sums, level.lanes)
    parts = range(0, LANES, level.lanes)
    for buffer in (buffer for row in sums for buffer in row):
        for part in parts:
            store(buffer, part, f32(0, level.lanes), level.lanes)
    starts = [w.start(block) for block in blocks]
    x_starts = [T.bind(x.view.start(row, head)) for row, head in rows]
    if not w.format.has_codes:
        _float_dot(level, w, x, starts, x_starts, tile)
        return tile
    scale_starts = [w.scale_start(block) for block in blocks]
    if not w.format.integer_products:
        (x_start,) = x_starts
        coded_dot(level, w, x.data, starts, scale_starts, x_start, [row for (row,) in sums])
        return tile
    most = max(1, tile_rows(level, w) * level.tuning.row_blocks // len(rows))  # blocks that registers hold sums of
    numbers = [row for row, _ in rows]
    by_words = _matrices(level, x_starts) is None
    for first in range(0, len(blocks), most):
        some = slice(first, first + most)
        held = Tile(sums[some], level.lanes)
        products = partial(_integer_dot, level, w, x, starts[some], scale_starts[some], x_starts, numbers, held)
        fetching(w, starts[some], level.tuning.prefetch_bytes, turn, by_words, products)
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
    assert unroll % elements_of(w.format).together == 0, "what lies side by side is read together"
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
    if elements_of(w.format).together == 1:
        at = start + T.Cast("int64", column) * LANES + part
        return [T.bind(load_f32(w.data, at + i * LANES, lanes, w.format.type_name)) for i in range(width)]
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
    fetch: Fetch,
) -> None:
    grouping, lanes = w.format.grouping, level.lanes
    group = grouping.activations
    groups = grouping.padded_k(w.k) // group
    parts = range(0, LANES, lanes)
    sums = [[local("i32", LANES) for _ in rows] for _ in starts]
    scales = [T.bind(row * groups) for row in rows]
    matrices = _matrices(level, x_starts)
    with T.serial(0, groups) as g:
        fetch.group(g)
        for row, scale in enumerate(scales):
            total = T.bind(x.sum[scale + g])
            for block in range(len(starts)):
                for part in parts:
                    store(sums[block][row], part, _offset(level, w, scale_starts[block], g, part, total), lanes)
        if matrices:
            codes = _columns_of(level, w, starts)
            mmla.add_products(matrices, codes, x.data, g * group, group, x_starts, sums)
        else:
            _dot_words(level, w, x, g, starts, x_starts, sums, fetch)
        for row, scale in enumerate(scales):
            x_scale = T.bind(T.broadcast(w.scaled(x.scale[scale + g]), lanes))
            for block in range(len(starts)):
                for part in parts:
                    factor = x_scale
                    if grouping.size:
                        at = w.group_start(scale_starts[block], g) + part
                        factor = w.scales(at, lanes) * x_scale
                    exact = T.Cast(f"float32x{lanes}", load(sums[block][row], part, lanes))
                    _accumulate(tile.sums[block][row], part, exact, factor, lanes)
    if grouping.size:
        return
    for block, row_sums in enumerate(tile.sums):
        for buffer in row_sums:
            for part in parts:
                scale = load(w.scale, scale_starts[block] + part, lanes)
                store(buffer, part, load(buffer, part, lanes) * scale, lanes)


def _matrices(level: IsaLevel, rows: list[Expr]) -> str | None:
    """Name of the level's product of matrices, if it takes so many rows: they go in pairs."""
    return level.mmla if len(rows) % 2 == 0 else None


def _offset(level: IsaLevel, w: Weight, scale_start: Expr, g: Expr, part: int, total: Expr) -> Expr:
    """-zero point * total of one part of a block as int32 lanes: what an integer sum of group g starts from."""
    lanes, taken = level.lanes, SIGN if _is_signed(level, w) else 0
    if w.zero is None:
        return T.broadcast(total * (taken - w.integer_zero), lanes)
    at = w.group_start(scale_start, g) + part
    zero = T.Cast(f"int32x{lanes}", load(w.zero, at, lanes))
    return (zero - taken if taken else zero) * T.broadcast(0 - total, lanes)


def _dot_words(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    g: Expr,
    starts: list[Expr],
    x_starts: list[Expr],
    sums: list[list[Buffer]],
    fetch: Fetch,
) -> None:
    """Add the products of group g."""
    group = w.format.grouping.activations
    units = group // w.planes.columns
    unroll = gcd(max(1, level.tuning.word_unroll // w.planes.words), units)
    count = min(group, unroll * w.planes.columns)
    with T.serial(0, group // count) as chunk:
        _dot_columns(level, w, x, T.bind(g * group + chunk * count), count, starts, x_starts, sums, fetch)


def _dot_columns(
    level: IsaLevel,
    w: Weight,
    x: Activation,
    column: Expr,
    count: int,
    starts: list[Expr],
    x_starts: list[Expr],
    sums: list[list[Buffer]],
    fetch: Fetch,
) -> None:
    """Add the products of `count` columns from `column` on: of whole units, or of less than one.

    Four columns at a time for all rows, so that few registers hold codes and most hold sums.
    """
    fetch.words(column, count)
    size = w.planes.columns if count % w.planes.columns == 0 else 2 * QUAD
    added = [_Sums(level, w.integer_bits, buffers) for buffers in sums]
    for first in range(0, count, size):
        quads = [
            [columns_quads(w, start, column + first, size, level.lanes, part) for part in range(0, LANES, level.lanes)]
            for start in starts
        ]
        together = added[0].together
        for i in range(0, size // QUAD, together):
            some = range(i, i + together)
            words = [[_word(x, start + (column + (first + quad * QUAD))) for start in x_starts] for quad in some]
            for block, parts in zip(added, quads, strict=True):
                block.add([[_operand(level, w, part[quad]) for part in parts] for quad in some], words)
            for block in added:
                block.hold()
    for block in added:
        block.finish()


def _word(x: Activation, at: Expr) -> Expr:
    """Four activations as an int32."""
    return T.bind(T.reinterpret("int32", load(x.data, at, QUAD)))


class _Sums:
    """Sums of one block for each row, to which products of quads are added: in 16 bits as long as these hold them."""

    def __init__(self, level: IsaLevel, bits: int, buffers: list[Buffer]) -> None:
        self._dot, self._lanes, self._buffers = DOT4[level.dot], level.lanes, buffers
        self._narrow = self._dot.narrow
        self._most = self._narrow.most(bits) if self._narrow else 0
        self._short: dict[tuple[int, int], Expr] = {}  # by row and part
        self._held = 0  # pairs in each of these

    @property
    def together(self) -> int:
        """Quads that a row takes before the next does: two where 16 bits hold no more, which then take no register."""
        return 2 if self._most == 2 else 1

    def add(self, codes: list[list[Expr]], words: list[list[Expr]]) -> None:
        """Of `together` quads the codes of each part of the block, and a word of each row."""
        for row in range(len(words[0])):
            for parts, of_rows in zip(codes, words, strict=True):
                for number, code in enumerate(parts):
                    self._add(row, number, code, of_rows[row])
            if self.together > 1:
                self.finish()
        self._held += len(codes)
        if self._held == self._most:
            self.finish()

    def _add(self, row: int, number: int, code: Expr, word: Expr) -> None:
        if self._narrow is None or not self._most:
            at = number * self._lanes
            total = self._dot.emit(load(self._buffers[row], at, self._lanes), code, word)
            store(self._buffers[row], at, total, self._lanes)
            return
        products = self._narrow.products(code, word)
        before = self._short.get((row, number))
        self._short[row, number] = T.bind(products if before is None else before + products)

    def hold(self) -> None:
        """Nothing of what follows is computed before what was added, at levels where registers are few."""
        if self._dot.held is None:
            return
        for place, pairs in self._short.items():
            self._short[place] = T.bind(self._dot.held(pairs, f"int16x{2 * self._lanes}"))
        if self._short:
            return
        for buffer, at in ((b, at) for b in self._buffers for at in range(0, LANES, self._lanes)):
            store(buffer, at, self._dot.held(load(buffer, at, self._lanes), f"int32x{self._lanes}"), self._lanes)

    def finish(self) -> None:
        """All that was added is in the buffers."""
        for (row, number), pairs in self._short.items():
            assert self._narrow is not None
            at = number * self._lanes
            total = load(self._buffers[row], at, self._lanes) + self._narrow.widen(pairs)
            store(self._buffers[row], at, total, self._lanes)
        self._short, self._held = {}, 0


def _columns_of(level: IsaLevel, w: Weight, starts: list[Expr]) -> mmla.ReadCodes:
    """Eight columns of a block as two groups of four."""

    def codes(block: int, column: Expr, part: int) -> tuple[Expr, Expr]:
        low, high = eight_columns(w, starts[block], column, level.lanes, part)
        return _operand(level, w, low), _operand(level, w, high)

    return codes


def _is_signed(level: IsaLevel, w: Weight) -> bool:
    """Whether the level's products want integers less SIGN. Those of fewer bits are the same either way."""
    return w.integer_bits == 8 and DOT4[level.dot].signed


def _operand(level: IsaLevel, w: Weight, quad: Expr) -> Expr:
    """A quad of codes as the level's products want it."""
    (found,) = w.integers([quad], level.lanes, flipped=SIGN if _is_signed(level, w) else 0)
    return found if w.planes.bits == 8 else T.bind(found)
