"""Keys and values of one head from latents: products of staged cache rows with the head's half of kv_b_proj.

Where latents are rounded to int8, packed weights are multiplied as they lie; else they are decoded once a head, and the
products are those of floats. `Rebuild` is what both have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any, Protocol

from dsv3c.compiler.formats.rows16 import LANES, padded_rows
from dsv3c.targets import tir as T
from dsv3c.targets.calls.attention import MlaMaterialized
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import View
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import cache_codes
from dsv3c.targets.cpu.kernels.decode import decode_block, decoded_columns
from dsv3c.targets.cpu.kernels.dot import Activation, Tile
from dsv3c.targets.cpu.kernels.frame import Buffer, stack
from dsv3c.targets.cpu.kernels.products import Indexed, dot_rows, imports
from dsv3c.targets.cpu.kernels.quantize import round_sixteen
from dsv3c.targets.cpu.kernels.vector import columns, f32, load, store
from dsv3c.targets.cpu.kernels.weights import Weight
from dsv3c.targets.cpu.kernels.words import PANEL, Sums, Words

Expr = Any

BLOCK = 64  # slots whose keys and values exist at a time
LATENT, KEY = 0, 1  # parts of a cache row


class Rebuild(Protocol):
    """Emits the products of one task, whose memory in the scratch operand begins at an offset given when it is made."""

    def begin(self, head: Expr) -> None:
        """Before the first product of a head."""

    def stage(self, slots: Expr, row: Callable[[Expr], Expr]) -> None:
        """Take the latents of `slots` slots, whole panels up to BLOCK; row(slot): where its row lies in the cache."""

    def multiply(self, role: str, head: Expr, panel: Expr, slots: Expr, out: Expr) -> None:
        """scratch[out + slot*PANEL + i] = key ("w_uk") or value ("w_uv") i of a panel, for the staged `slots`; any
        finite number where the head has no such row."""


def rebuild_size(spec: MlaMaterialized, steps: int) -> int:
    """Words of 32 bits that a task needs in the scratch operand, with `steps` numbers in a word."""
    return _Integers.size(spec) if spec.group else _Floats.size(spec, steps)


def rebuild_of(spec: MlaMaterialized, form: Words, buffers: dict[str, Buffer], at: Expr) -> Rebuild:
    """A task's, whose memory begins at `at`."""
    assert bool(spec.group) == spec.weight.integer_products, f"group {spec.group} with {spec.weight}"
    if not spec.group:
        return _Floats(spec, form, buffers, at)
    return _Integers(spec, form.level, buffers, at, _rounded(spec))


def rebuild_imports(spec: MlaMaterialized, level: IsaLevel) -> str:
    """LLVM IR that a kernel with these products imports, beside that of its words."""
    return imports(level, spec.weight) if spec.group else ""


def stage_part(form: Words, buffers: dict[str, Buffer], paging: Paging, row: Expr, part: int, out: Expr) -> None:
    """A part of the cache row that starts at `row` as words from scratch[out] on, zeros up to a whole vector."""
    cache, scratch = buffers["cache"], buffers["scratch"]
    count, start = cache_codes.parts(paging)[part]
    if not paging.coded:
        form.copy(cache, row + start, count, paging.element, scratch, out)
        return
    cache_codes.decode_row(cache, row, part, paging, scratch, out)
    _zeros(scratch, out, count, padded_rows(count))


def _zeros(buffer: Buffer, out: Expr, start: int, end: int) -> None:
    columns(end, lambda at, lanes: store(buffer, out + at, f32(0, lanes), lanes), start=start)


def _weight(spec: MlaMaterialized, buffers: dict[str, Buffer], role: str) -> Weight:
    n = {"w_uk": spec.nope, "w_uv": spec.v}[role]
    return Weight.of(buffers, role, spec.weight, n, spec.paging.rank)


@dataclass(frozen=True)
class _Floats:
    """Weights as panels, decoded once a head; latents as words.

    In scratch: w_uk [panels][decoded, PANEL], w_uv the same, latents [BLOCK, latent].
    """

    spec: MlaMaterialized
    form: Words
    buffers: dict[str, Buffer]
    at: Expr

    @staticmethod
    def size(spec: MlaMaterialized, steps: int) -> int:
        decoded, latent = _Floats._widths(spec, steps)
        panels = -(-spec.nope // PANEL) + -(-spec.v // PANEL)
        return panels * decoded * PANEL + BLOCK * latent

    @staticmethod
    def _widths(spec: MlaMaterialized, steps: int) -> tuple[int, int]:
        """Words of a weight row, with what its format pads, and of a latent."""
        rank = spec.paging.rank
        return decoded_columns(spec.weight, rank) // steps, padded_rows(-(-rank // steps))

    def _places(self) -> tuple[dict[str, Expr], Expr, int, int]:
        """Where both weights and the latents begin, and the widths of their rows."""
        decoded, latent = self._widths(self.spec, self.form.steps)
        w_uv = self.at + -(-self.spec.nope // PANEL) * decoded * PANEL
        latents = w_uv + -(-self.spec.v // PANEL) * decoded * PANEL
        return {"w_uk": self.at, "w_uv": w_uv}, latents, decoded, latent

    def begin(self, head: Expr) -> None:
        """Partners side by side in K; zeros in what a last panel has no rows for."""
        starts, _, decoded, _ = self._places()
        form, scratch = self.form, self.buffers["scratch"]
        for role, out in starts.items():
            w = _weight(self.spec, self.buffers, role)
            with T.serial(0, w.blocks) as block:
                start = T.bind(out + T.floordiv(block, 2) * (decoded * PANEL) + T.floormod(block, 2) * LANES)

                def put(i: Expr, low: Expr, high: Expr, start: Expr = start) -> None:
                    form.put(scratch, start + i * (form.vectors * PANEL), low, high, PANEL)

                decode_block(w, T.bind(head * w.blocks + block), put)
            if w.blocks % 2:
                with T.serial(0, decoded) as i:
                    store(scratch, out + (w.blocks // 2 * decoded + i) * PANEL + LANES, f32(0, LANES), LANES)

    def stage(self, slots: Expr, row: Callable[[Expr], Expr]) -> None:
        _, latents, _, width = self._places()
        with T.serial(0, slots) as slot:
            out = T.bind(latents + slot * width)
            stage_part(self.form, self.buffers, self.spec.paging, row(slot), LATENT, out)

    def multiply(self, role: str, head: Expr, panel: Expr, slots: Expr, out: Expr) -> None:
        weights, latents, decoded, width = self._places()
        form, scratch, lanes = self.form, self.buffers["scratch"], self.form.level.lanes
        with T.serial(0, T.floordiv(slots, form.rows)) as step:
            slot = T.bind(step * form.rows)

            def finish(part: int, sums: Sums, slot: Expr = slot) -> None:
                for i, halves in enumerate(sums):
                    for half, total in enumerate(halves):
                        at = out + (slot + i) * PANEL + half * LANES + part
                        store(scratch, at, load(total, 0, lanes), lanes)

            starts = [T.bind(latents + slot * width) + i * width for i in range(form.rows)]
            start = T.bind(weights[role] + panel * (decoded * PANEL))
            form.tile(scratch, start, -(-self.spec.paging.rank // form.steps), starts, finish)


@dataclass(frozen=True)
class _Integers:
    """Packed weights; latents in int8, on the task's stack. In scratch: the rows that are being rounded, as float32."""

    spec: MlaMaterialized
    level: IsaLevel
    buffers: dict[str, Buffer]
    at: Expr
    latents: Activation

    @staticmethod
    def size(spec: MlaMaterialized) -> int:
        return _rows_at_once(spec) * spec.weight.padded_k(spec.paging.rank)

    def begin(self, head: Expr) -> None:
        """Nothing: a head's packed weights stay in the caches by themselves."""

    def stage(self, slots: Expr, row: Callable[[Expr], Expr]) -> None:
        spec, scratch, count = self.spec, self.buffers["scratch"], _rows_at_once(self.spec)
        padded, form = spec.weight.padded_k(spec.paging.rank), Words(self.level, paired=False)
        sixteens = count * padded // spec.group // LANES
        with T.serial(0, T.floordiv(slots, count)) as step:
            with T.serial(0, count) as i:
                out = T.bind(self.at + i * padded)
                stage_part(form, self.buffers, spec.paging, row(T.bind(step * count + i)), LATENT, out)
                _zeros(scratch, out, padded_rows(spec.paging.rank), padded)
            with T.serial(0, sixteens) as i:
                start = T.bind(self.at + i * (LANES * spec.group))
                round_sixteen(scratch, start, self.latents, T.bind((step * sixteens + i) * LANES), spec.group)

    def multiply(self, role: str, head: Expr, panel: Expr, slots: Expr, out: Expr) -> None:
        w, scratch = _weight(self.spec, self.buffers, role), self.buffers["scratch"]
        # The half of a last panel that has no rows repeats the other one.
        numbers = [T.min(panel * 2 + half, w.blocks - 1) for half in range(2)]
        blocks = [T.bind(head * w.blocks + number) for number in numbers]

        def use(tile: Tile, rows: list[Expr]) -> None:
            for i, row in enumerate(rows):
                start = T.bind(out + row * PANEL)
                for at in range(0, PANEL, tile.lanes):
                    half, part = divmod(at, LANES)
                    store(scratch, start + at, tile.part(half, i, part), tile.lanes)

        dot_rows(self.level, w, self.latents, blocks, Indexed(slots, lambda row: (row, 0), stride=1), use)


def _rows_at_once(spec: MlaMaterialized) -> int:
    """Latents that together have whole sixteens of groups: a power of two up to sixteen."""
    return LANES // gcd(LANES, spec.weight.padded_k(spec.paging.rank) // spec.group)


def _rounded(spec: MlaMaterialized) -> Activation:
    """Room for a block of rounded latents on the stack."""
    padded = spec.weight.padded_k(spec.paging.rank)
    groups = BLOCK * padded // spec.group
    return Activation(stack("i8", 1, BLOCK * padded), View(padded), stack("f32", 1, groups), stack("i32", 1, groups))
