"""What products fetch of the weights that come next, so that memory is read while they compute.

A row alone is as fast as memory, and the hardware's own prefetching stops at the end of each page: it fetches its
weights a little ahead. A few rows take about as long for a block as memory takes, and what they do not fetch early
costs both times, one after the other, as too few of their loads are under way at once. So a tile that has its blocks to
itself fetches them ahead as well, and several that share blocks share what comes after these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import prefetch
from dsv3c.targets.cpu.kernels.weights import LINE, Weight

Expr = Any

TILE_AHEAD = 4096  # bytes; on a Zen 4 2048 are too near for four rows, and more gains nothing


@dataclass(frozen=True)
class Turn:
    """A tile of several rows: the `number`-th of `tiles` that the same blocks meet. rest: it has fewer rows."""

    number: Expr
    tiles: Expr
    rest: bool

    @classmethod
    def at(cls, indices: list[Expr], count: Expr, size: int) -> Turn | None:
        """Of the tile with the rows `indices` of `count`, cut into `size` at a time; None for a single row."""
        if len(indices) == 1:
            return None
        tiles = T.bind(T.floordiv(count + (size - 2), size))  # a last single row is none
        return cls(T.bind(T.floordiv(indices[0], size)), tiles, len(indices) < size)


class AtWords:
    """Fetches a line at each word of the products, or a part of one: `step` bytes behind what the word before fetched.

    The first word fetches what is `distance` bytes behind the start of each block.
    """

    def __init__(self, w: Weight, starts: list[Expr], distance: Expr, step: Expr) -> None:
        self._w, self._step = w, step
        self._fetched = [T.bind(start + distance) for start in starts]

    def group(self, g: Expr) -> None:
        pass

    def words(self, column: Expr, count: int) -> None:
        """With the products of `count` columns from `column` on."""
        planes = self._w.planes
        first = T.bind(T.Cast("int64", T.floordiv(column, planes.columns) * planes.words) * self._step)
        for start in self._fetched:
            for word in range(planes.words * -(-count // planes.columns)):
                prefetch(self._w.data, start + first + T.int64(word) * self._step)


class AtGroups:
    """Fetches a line of each next block in each group: so few that no load of the tile itself waits behind them."""

    def __init__(self, w: Weight, starts: list[Expr], number: Expr) -> None:
        self._w, self._starts, self._number = w, starts, number

    def group(self, g: Expr) -> None:
        line = T.bind((self._number * _groups(self._w) + g) * LINE)
        with T.If(line < self._w.block_size), T.Then():
            for start in self._starts:
                prefetch(self._w.data, start + T.int64(self._w.block_size) + T.Cast("int64", line))

    def words(self, column: Expr, count: int) -> None:
        pass


Fetch = AtWords | AtGroups


def fetching(
    w: Weight, starts: list[Expr], ahead: int, turn: Turn | None, by_words: bool, emit: Callable[[Fetch], None]
) -> None:
    """emit(fetch): products of the blocks at `starts` with a row, which fetches `ahead` bytes ahead, or with a tile.

    Twice where the number of tiles decides at run time: of as many as a group has lines, each need fetch but one in a
    group, and more would cost up to a tenth at AVX2. by_words: whether the products of a tile call `words`.
    """
    if turn is None:
        emit(AtWords(w, starts, T.int64(ahead), T.int64(LINE)))
    elif not by_words:
        emit(AtGroups(w, starts, turn.number))
    elif turn.rest:
        emit(_shared(w, starts, turn))
    else:
        lines = w.block_size // LINE // _groups(w)
        with T.If(turn.tiles < max(2, lines)):
            with T.Then():
                emit(_shared(w, starts, turn))
            with T.Else():
                emit(AtGroups(w, starts, turn.number))


def _shared(w: Weight, starts: list[Expr], turn: Turn) -> AtWords:
    """A tile's share of the next blocks; alone, all of its own and of the beginning of these."""
    step = T.bind(T.Cast("int64", T.floordiv(turn.tiles + (LINE - 1), turn.tiles)))
    behind = T.int64(w.block_size) + T.Cast("int64", turn.number * (w.block_size // LINE)) * step
    return AtWords(w, starts, T.bind(T.Select(turn.tiles > 1, behind, T.int64(min(TILE_AHEAD, w.block_size)))), step)


def _groups(w: Weight) -> int:
    return w.format.grouping.padded_k(w.k) // w.format.grouping.activations
