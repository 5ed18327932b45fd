"""mla_materialized: attention on keys and values rebuilt from the latent cache, for many tokens at once.

A task takes whole heads, one after the other. It goes over the context in blocks of slots, rebuilds their keys and
values from the head's half of kv_b_proj (rebuild.py), and lets every token of the sequence see them. The products of
scores and sums are tiles of a few rows by a panel (words.py), in the task's own slice of the scratch operand:

    keys    w_uk x latent rows, transposed: the slots come into the lanes of a panel
    values  w_uv x latent rows
    scores  panel of keys x queries
    sums    panel of values x probabilities

Heads are the only parallelism: with n threads a step takes as long as ceil(heads / n) heads. Cutting the tokens too
would rebuild keys and values for each cut, for 512 tokens and 128/64/128 over rank 512 two fifths of the work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.formats.rows16 import LANES, padded_rows
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaMaterialized
from dsv3c.targets.calls.operands import CONTROL, view_of, weight_operands
from dsv3c.targets.cpu.intrinsics import splat
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels.cache import cache_row
from dsv3c.targets.cpu.kernels.frame import PARALLEL_WORK, Buffer, Operand, PrimFunc, local, loop, prim_func
from dsv3c.targets.cpu.kernels.rebuild import (
    BLOCK,
    KEY,
    Rebuild,
    rebuild_imports,
    rebuild_of,
    rebuild_size,
    stage_part,
)
from dsv3c.targets.cpu.kernels.softmax import LOWEST, masked
from dsv3c.targets.cpu.kernels.vector import add, columns, exp2, f32, horizontal, load, store, transpose
from dsv3c.targets.cpu.kernels.words import PANEL, Sums, Words

Expr = Any

GROUP = PANEL  # slots of a panel of keys; those 16 apart are partners
SLICES = 32  # tasks at most, as each has a slice of the scratch operand


@dataclass(frozen=True)
class _Sizes:
    """Words in the rows and panels of one head."""

    nope_panels: int
    v_panels: int
    rope: int  # of a rotated key, whole panels
    nope: int  # of the other part of a key, whole panels

    @property
    def key(self) -> int:
        return self.nope + self.rope

    @classmethod
    def of(cls, spec: MlaMaterialized, steps: int) -> _Sizes:
        nope, v, rope = (-(-n // PANEL) for n in (spec.nope, spec.v, spec.paging.d))
        return cls(nope, v, rope * PANEL // steps, nope * PANEL // steps)


@dataclass(frozen=True)
class _Slice:
    """Offsets of one task's slice of the scratch operand, in words."""

    rebuild: Expr  # what rebuilding needs
    rotated: Expr  # [BLOCK, rope]: the rotated keys of cache rows
    rebuilt: Expr  # [BLOCK, PANEL]: a panel of keys or values as rows
    keys: Expr  # [BLOCK / GROUP][key, PANEL]
    values: Expr  # [v_panels][BLOCK / steps, PANEL]
    queries: Expr  # [tokens, key], scaled to scores whose softmax is a power of 2
    sums: Expr  # [tokens, v_panels * PANEL], relative to the largest score
    largest: Expr  # [tokens]
    total: Expr  # [tokens, 16]: to be added up
    scores: Expr  # [rows of a tile, BLOCK]
    probabilities: Expr  # [rows of a tile, BLOCK / steps]
    factors: Expr  # [rows of a tile]: from the largest score before to the one after the block
    size: int

    @classmethod
    def of(cls, spec: MlaMaterialized, steps: int, index: Expr) -> _Slice:
        words, tokens = _Sizes.of(spec, steps), padded_rows(spec.rows.maximum)
        sizes = (
            rebuild_size(spec, steps),
            BLOCK * words.rope,
            BLOCK * PANEL,
            BLOCK * words.key,
            words.v_panels * PANEL * BLOCK // steps,
            tokens * words.key,
            tokens * words.v_panels * PANEL,
            tokens,
            tokens * LANES,
            LANES * BLOCK,
            LANES * BLOCK // steps,
            LANES,
        )
        size = sum(sizes)
        return cls(*[*(index * size + sum(sizes[:i]) for i in range(len(sizes))), size])


@dataclass(frozen=True)
class _Head:
    """What the emission of one head needs."""

    spec: MlaMaterialized
    form: Words
    buffers: dict[str, Buffer]
    index: Expr
    at: _Slice
    rebuild: Rebuild

    @property
    def scratch(self) -> Buffer:
        return self.buffers["scratch"]

    @property
    def words(self) -> _Sizes:
        return _Sizes.of(self.spec, self.form.steps)

    @property
    def sums_stride(self) -> int:
        return self.words.v_panels * PANEL


@dataclass(frozen=True)
class _Run:
    """Tokens start … end - 1, all of `sequence`; `last` is their furthest position."""

    start: Expr
    end: Expr
    sequence: Expr
    last: Expr

    def token(self, i: Expr) -> Expr:
        """The i-th. A tile that passes the end repeats the last one in rows that are never read."""
        return T.bind(T.min(self.start + i, self.end - 1))


def operands(spec: MlaMaterialized) -> tuple[Operand, ...]:
    m, paging = spec.rows.maximum, spec.paging
    size = _Slice.of(spec, 1, 0).size  # of float32, whatever the level
    return (
        CONTROL,
        Operand("q_nope", "f32", m * view_of(spec.view, spec.heads, spec.nope).row_stride),
        Operand("q_pe", "f32", m * spec.heads * paging.d),
        paging.cache,
        *weight_operands("w_uk", spec.weight, (spec.heads,), spec.nope, paging.rank),
        *weight_operands("w_uv", spec.weight, (spec.heads,), spec.v, paging.rank),
        *paging.operands(m),
        Operand("y", "f32", m * spec.heads * spec.v),
        Operand("scratch", "f32", min(spec.heads, SLICES) * size),
    )


def build(spec: MlaMaterialized, level: IsaLevel) -> PrimFunc:
    """Parallel over heads."""
    form = Words.of(level, spec.paging.element)
    slices = min(spec.heads, SLICES)

    def body(buffers: dict[str, Buffer]) -> None:
        tokens = T.bind(buffers["control"][spec.rows.index])
        work = spec.heads * BLOCK * spec.paging.rank * (spec.nope + spec.v)
        with loop(slices, work >= PARALLEL_WORK) as part:
            at = _Slice.of(spec, form.steps, part)
            rebuild = rebuild_of(spec, form, buffers, at.rebuild)
            with T.serial(0, T.floordiv(spec.heads - part + (slices - 1), slices)) as step:
                head = _Head(spec, form, buffers, T.bind(part + step * slices), at, rebuild)
                rebuild.begin(head.index)
                _runs(head, tokens)

    return prim_func(operands(spec), body, form.llvm + rebuild_imports(spec, level))


def _runs(head: _Head, tokens: Expr) -> None:
    """Each run of tokens of one sequence over that sequence's context."""
    sequence, positions = head.buffers["sequence"], head.buffers["positions"]
    first, end, longest = (local("i32", 1) for _ in range(3))
    store(first, 0, T.int32(0), 1)
    with T.While(first[0] < tokens):
        start = T.bind(first[0])
        store(end, 0, start, 1)
        store(longest, 0, T.int32(0), 1)
        # The index is clamped because both sides of the condition are computed.
        with T.While(T.And(end[0] < tokens, sequence[T.min(end[0], tokens - 1)] == sequence[start])):
            store(longest, 0, T.max(longest[0], positions[end[0]]), 1)
            store(end, 0, end[0] + 1, 1)
        run = _Run(start, T.bind(end[0]), T.bind(sequence[start]), T.bind(longest[0]))
        _attend(head, run)
        store(first, 0, end[0], 1)


def _attend(head: _Head, run: _Run) -> None:
    rows = head.form.rows
    tiles = T.bind(T.floordiv(run.end - run.start + (rows - 1), rows))
    with T.serial(0, tiles * rows) as i:
        _start(head, run, i)
    with T.serial(0, T.floordiv(run.last, BLOCK) + 1) as block:
        first = T.bind(block * BLOCK)
        groups = T.bind(T.floordiv(T.min(run.last - first, BLOCK - 1), GROUP) + 1)
        _stage(head, run, first, groups)
        _rebuild_keys(head, groups)
        _rebuild_values(head, groups)
        with T.serial(0, tiles) as tile:
            _see(head, run, T.bind(tile * rows), first)
    with T.serial(0, run.end - run.start) as i:
        _finish(head, run, i)


def _start(head: _Head, run: _Run, i: Expr) -> None:
    """The query of the run's i-th token as words, and nothing seen yet."""
    spec, form, at, scratch, words = head.spec, head.form, head.at, head.scratch, head.words
    t = run.token(i)
    out = T.bind(at.queries + i * words.key)

    def panel(source: Buffer, start: Expr, n: int, offset: int) -> tuple[Expr, Expr]:
        """PANEL numbers from `offset` on of the n at `start`, scaled."""
        scale = f32(spec.scale * math.log2(math.e), LANES)
        low, high = (_vector(source, start + offset + half, n - offset - half) for half in (0, LANES))
        return T.bind(low * scale), T.bind(high * scale)

    nope = T.bind(view_of(spec.view, spec.heads, spec.nope).start(t, head.index))
    for p in range(words.nope_panels):
        low, high = panel(head.buffers["q_nope"], nope, spec.nope, p * PANEL)
        form.put(scratch, out + p * (PANEL // form.steps), low, high)
    pe, d = T.bind((t * spec.heads + head.index) * spec.paging.d), spec.paging.d
    for p in range(-(-d // PANEL)):
        low, high = form.neighbours(*panel(head.buffers["q_pe"], pe, d, p * PANEL))
        form.put(scratch, out + words.nope + p * (PANEL // form.steps), low, high)
    store(scratch, at.largest + i, f32(LOWEST), 1)
    store(scratch, at.total + i * LANES, f32(0, LANES), LANES)
    with T.serial(0, head.sums_stride // LANES) as c:
        store(scratch, at.sums + i * head.sums_stride + c * LANES, f32(0, LANES), LANES)


def _vector(source: Buffer, start: Expr, n: int) -> Expr:
    """Sixteen numbers from `start` on, zeros from the n-th on."""
    if n >= LANES:
        return load(source, start, LANES)
    out = local("f32", LANES)
    store(out, 0, f32(0, LANES), LANES)
    columns(n, lambda at, lanes: store(out, at, load(source, start + at, lanes), lanes))
    return load(out, 0, LANES)


def _stage(head: _Head, run: _Run, first: Expr, groups: Expr) -> None:
    """The cache rows of `groups` groups of slots from `first` on; those past the run's last position repeat it."""
    paging, form, at = head.spec.paging, head.form, head.at

    def row(slot: Expr) -> Expr:
        return cache_row(paging, head.buffers["page_table"], run.sequence, T.bind(T.min(first + slot, run.last)))

    slots = T.bind(groups * GROUP)
    head.rebuild.stage(slots, row)
    with T.serial(0, slots) as slot:
        stage_part(form, head.buffers, paging, row(slot), KEY, T.bind(at.rotated + slot * head.words.rope))


def _rebuild_keys(head: _Head, groups: Expr) -> None:
    """Keys of the staged slots, with the slots in the lanes."""
    form, at, scratch, words = head.form, head.at, head.scratch, head.words
    slots = T.bind(groups * GROUP)

    def key(sixteen: Expr, k: Expr) -> Expr:
        """Offset of word k of sixteen slots."""
        group, half = T.floordiv(sixteen, 2), T.floormod(sixteen, 2)
        return T.bind(at.keys + (group * words.key + k) * PANEL + half * LANES)

    with T.serial(0, words.nope_panels) as panel:
        head.rebuild.multiply("w_uk", head.index, panel, slots, at.rebuilt)
        with T.serial(0, groups * 2) as sixteen:
            first = T.bind(at.rebuilt + sixteen * (LANES * PANEL))
            starts = [first + i * PANEL for i in range(LANES)]
            words_of = [form.words(*(load(scratch, start + half, LANES) for half in (0, LANES))) for start in starts]
            for i, sixteen_words in enumerate(zip(*words_of, strict=True)):
                k = T.bind((panel * form.vectors + i) * LANES)
                _turn(scratch, [T.bind(word) for word in sixteen_words], key(sixteen, k))
    with T.serial(0, words.rope // LANES) as j, T.serial(0, groups * 2) as sixteen:
        first = T.bind(at.rotated + sixteen * (LANES * words.rope) + j * LANES)
        rows = [T.bind(load(scratch, first + i * words.rope, LANES)) for i in range(LANES)]
        _turn(scratch, rows, key(sixteen, words.nope + j * LANES))


def _turn(scratch: Buffer, rows: list[Expr], out: Expr) -> None:
    """Sixteen rows of sixteen words transposed into rows of a panel."""
    for i, column in enumerate(transpose(rows)):
        store(scratch, out + i * PANEL, column, LANES)


def _rebuild_values(head: _Head, groups: Expr) -> None:
    """Values of the staged slots: partners are the slots 16 apart."""
    form, at, scratch, words = head.form, head.at, head.scratch, head.words
    with T.serial(0, words.v_panels) as panel:
        head.rebuild.multiply("w_uv", head.index, panel, T.bind(groups * GROUP), at.rebuilt)
        with T.serial(0, groups) as group, T.serial(0, LANES) as i:
            out = T.bind(at.values + (panel * (BLOCK // form.steps) + group * (GROUP // form.steps) + i) * PANEL)
            row = T.bind(at.rebuilt + (group * GROUP + i) * PANEL)
            for half in (0, LANES):
                low, high = (load(scratch, row + (partner * PANEL + half), LANES) for partner in (0, LANES))
                form.put(scratch, out + half, low, high, LANES * PANEL)


def _see(head: _Head, run: _Run, row: Expr, first: Expr) -> None:
    """Fold the block from slot `first` on into the softmax of a tile of tokens, unless it lies past all of them."""
    rows = range(head.form.rows)
    positions = [T.bind(head.buffers["positions"][run.token(row + i)]) for i in rows]
    furthest, nearest = positions[0], positions[0]
    for position in positions[1:]:
        furthest, nearest = T.max(furthest, position), T.min(nearest, position)
    furthest = T.bind(furthest)
    with T.If(furthest >= first), T.Then():
        groups = T.bind(T.floordiv(T.min(furthest - first, BLOCK - 1), GROUP) + 1)
        _score(head, row, groups)
        with T.If(nearest < first + groups * GROUP - 1), T.Then():
            _mask(head, positions, first, groups)
        with T.serial(0, head.form.rows) as i:
            _soften(head, T.bind(row + i), i, groups)
        _add_values(head, row, groups)


def _score(head: _Head, row: Expr, groups: Expr) -> None:
    """scores of a tile of tokens, whose first is `row`."""
    form, at, scratch, words = head.form, head.at, head.scratch, head.words
    lanes, queries = form.level.lanes, T.bind(at.queries + row * words.key)
    starts = [queries + i * words.key for i in range(form.rows)]
    with T.serial(0, groups) as group:
        out = T.bind(at.scores + group * GROUP)

        def finish(part: int, sums: Sums) -> None:
            for i, halves in enumerate(sums):
                for half, total in enumerate(halves):
                    store(scratch, out + i * BLOCK + half * LANES + part, load(total, 0, lanes), lanes)

        count = words.nope + -(-head.spec.paging.d // form.steps)
        form.tile(scratch, T.bind(at.keys + group * (words.key * PANEL)), count, starts, finish)


def _mask(head: _Head, positions: list[Expr], first: Expr, groups: Expr) -> None:
    """Lower the scores of slots past each token's position."""
    scratch = head.scratch
    with T.serial(0, groups * 2) as sixteen:
        for i, position in enumerate(positions):
            at = T.bind(head.at.scores + i * BLOCK + sixteen * LANES)
            last = position - first - sixteen * LANES
            store(scratch, at, masked(load(scratch, at, LANES), last, LANES), LANES)


def _soften(head: _Head, row: Expr, i: Expr, groups: Expr) -> None:
    """Scores of the tile's i-th token, which is the run's `row`-th, into probabilities relative to its largest one."""
    form, at, scratch = head.form, head.at, head.scratch
    degree = 4 if form.paired else 7
    scores, total = T.bind(at.scores + i * BLOCK), T.bind(at.total + row * LANES)
    largest, sums = local("f32", LANES), local("f32", LANES)

    def vectors(group: Expr) -> list[Expr]:
        return [load(scratch, scores + group * GROUP + half * LANES, LANES) for half in range(2)]

    store(largest, 0, f32(LOWEST, LANES), LANES)
    with T.serial(0, groups) as group:
        store(largest, 0, T.max(load(largest, 0, LANES), T.max(*vectors(group))), LANES)
    before = T.bind(scratch[at.largest + row])
    after = T.bind(T.max(before, horizontal(load(largest, 0, LANES), LANES, T.max)))
    factor = T.bind(exp2(before - after, 1, degree))
    store(scratch, at.largest + row, after, 1)
    store(scratch, at.factors + i, factor, 1)
    store(sums, 0, load(scratch, total, LANES) * splat(factor, LANES), LANES)
    with T.serial(0, groups) as group:
        low, high = (T.bind(exp2(score - splat(after, LANES), LANES, degree)) for score in vectors(group))
        store(sums, 0, load(sums, 0, LANES) + (low + high), LANES)
        out = T.bind(at.probabilities + i * (BLOCK // form.steps) + group * (GROUP // form.steps))
        form.put(scratch, out, low, high)
    store(scratch, total, load(sums, 0, LANES), LANES)


def _add_values(head: _Head, row: Expr, groups: Expr) -> None:
    """sums = sums * factor + probabilities . values, for the tile of tokens whose first is `row`."""
    form, at, scratch, stride = head.form, head.at, head.scratch, head.sums_stride
    lanes, size = form.level.lanes, BLOCK // form.steps
    starts = [at.probabilities + i * size for i in range(form.rows)]
    with T.serial(0, head.words.v_panels) as panel:
        sums_at = T.bind(at.sums + row * stride + panel * PANEL)

        def start(i: int, half: int, part: int) -> Expr:
            factor = T.bind(splat(scratch[at.factors + i], lanes))
            return load(scratch, sums_at + i * stride + half * LANES + part, lanes) * factor

        def finish(part: int, sums: Sums) -> None:
            for i, halves in enumerate(sums):
                for half, total in enumerate(halves):
                    store(scratch, sums_at + i * stride + half * LANES + part, load(total, 0, lanes), lanes)

        count = T.bind(groups * (GROUP // form.steps))
        form.tile(scratch, T.bind(at.values + panel * (size * PANEL)), count, starts, finish, start)


def _finish(head: _Head, run: _Run, i: Expr) -> None:
    """y of the run's i-th token."""
    at, scratch = head.at, head.scratch
    out = T.bind(((run.start + i) * head.spec.heads + head.index) * head.spec.v)
    total = horizontal(load(scratch, at.total + i * LANES, LANES), LANES, add)
    inverse = T.bind(f32(1) / total)
    sums = T.bind(at.sums + i * head.sums_stride)

    def normalise(c: Expr, lanes: int) -> None:
        store(head.buffers["y"], out + c, load(scratch, sums + c, lanes) * splat(inverse, lanes), lanes)

    columns(head.spec.v, normalise)
