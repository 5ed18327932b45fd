"""What a workgroup knows of the row that it samples from, and how one pass leads to the next.

A row has a state of a few words. The pass that was last is in it, and where the search for a key stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsv3c.targets import tir as T
from dsv3c.targets.gpu.kernels.frame import LOWEST, Buffer, Buffers, Expr, f32, local, store
from dsv3c.targets.gpu.kernels.functions import exp
from dsv3c.targets.gpu.kernels.words import unsigned

# Words of a row of the operand `sampling`.
PARAMS = 8
INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, UNIFORM = range(5)

BINS = 16
LEVELS = 7  # passes of a search: 16^7 > LAST_KEY

# Distances from 2^-26, below which exp(-x) is 1, to 32, from where on a weight is no share of 2^-31: their bits as
# float32, counted from those of 2^-26.
_FARTHEST = 32.0
_FIRST_BITS, LAST_KEY = 101 << 23, 31 << 23

# Passes in their order; a search has its level in the low three bits.
START, LARGEST, WEIGH, NUCLEUS, TOTAL, DRAW, WITHIN, NOT_DRAWN = -1, 0, 7, 8, 15, 16, 23, 24

# Words of a row's state. PASS: the last one. LOW: the search stands at keys from here on. REST: what is still to be
# reached there. EDGE: the last key that is kept, with TIES of its ids. SCALE: shares of the weight 1. BEST: a logit.
PASS, LOW, REST, EDGE, TIES, SCALE, BEST = range(7)
STATE = 8


@dataclass(frozen=True)
class Search:
    """What a thread knows of its row: state i32 [STATE] in registers."""

    vocab: int
    buffers: Buffers
    row: Expr
    state: Buffer

    def __getitem__(self, word: int) -> Expr:
        return self.state[word]

    def load(self, scratch: Buffer, start: Expr) -> None:
        for word in range(STATE - 1):
            store(self.state, word, scratch[start + word])
        store(self.state, STATE - 1, T.int32(0))

    def param(self, index: int) -> Expr:
        return self.buffers["sampling"][self.row * PARAMS + index]

    def key(self, i: Expr) -> Expr:
        """i32, 0 for the best to LAST_KEY, whose weight is 0. Equal weights of the sampler are equal keys, almost."""
        logit = T.max(self.buffers["logits"][self.row * self.vocab + i], f32(LOWEST))
        best = T.reinterpret("float32", T.bind(self[BEST]))
        inverse = T.reinterpret("float32", T.bind(self.param(INVERSE_TEMPERATURE)))
        x = T.bind(T.max(T.min((best - logit) * inverse, f32(_FARTHEST)), f32(0)))
        bits = T.reinterpret("int32", x) - _FIRST_BITS
        return T.bind(T.max(T.min(bits, T.int32(LAST_KEY)), T.int32(0)))

    def weight(self, key: Expr) -> Expr:
        """exp of minus the distance; 0 for LAST_KEY."""
        x = T.reinterpret("float32", T.bind(key + _FIRST_BITS))
        return T.bind(T.Select(key < LAST_KEY, exp(f32(0) - x), f32(0)))

    def share(self, weight: Expr) -> Expr:
        """A weight as a whole number of shares."""
        return unsigned(weight * T.reinterpret("float32", T.bind(self[SCALE])) + f32(0.5))

    def filtered_share(self, weight: Expr) -> Expr:
        """That, 0 where min-p leaves it out."""
        least = T.reinterpret("float32", T.bind(self.param(MIN_P)))
        return T.Select(weight < least, T.uint32(0), self.share(weight))

    def is_ordered(self) -> Expr:
        """Whether the sampler goes through ids in order: neither top-k nor top-p is on."""
        return T.And(self.param(TOP_P) == 0, T.Not(self.has_top_k()))

    def has_top_k(self) -> Expr:
        return T.And(self.param(TOP_K) > 0, self.param(TOP_K) < self.vocab)

    def within(self, key: Expr, weight: Expr) -> Expr:
        """What an id counts in the last pass: its share, or, where a search has found a key, 1 if it has that key."""
        found = T.Select(key == self[LOW], T.uint32(1), T.uint32(0))
        return T.Select(self.is_ordered(), self.filtered_share(weight), found)

    def look(self, i: Expr, counts: Buffer, sums: Buffer) -> None:
        """Adds id i to the counts of a bin, or its weight to the sums, as the pass asks."""
        level, kind = self._level(), T.bind(T.shift_right(self[PASS], T.int32(3)))
        key = self.key(i)
        weight = self.weight(key)
        shift = T.bind((LEVELS - 1 - T.min(level, LEVELS - 1)) * 4)
        above = T.bind(shift + 4)
        searched = T.shift_right(key, above) == T.shift_right(self[LOW], above)
        bin_, value = local(1, "int32"), local(1, "uint32")
        store(bin_, 0, T.bitwise_and(T.shift_right(key, shift), T.int32(BINS - 1)))
        share = T.bind(T.Select(self[PASS] < TOTAL, self.share(weight), self.filtered_share(weight)))
        kept = T.bind(T.Select(key < self[EDGE], share, T.uint32(0)))
        store(value, 0, T.Select(kind == LARGEST >> 3, T.uint32(1), kept))
        with T.If(level == LEVELS):
            with T.Then():
                store(bin_, 0, T.int32(0))
                store(value, 0, T.Select(self[PASS] == WITHIN, self.within(key, weight), kept))
                with T.If(T.And(self[PASS] == WEIGH, key < self[EDGE])), T.Then():
                    store(sums, 0, sums[0] + weight)
            with T.Else():
                store(value, 0, T.Select(searched, value[0], T.uint32(0)))
        for b in range(BINS):
            store(counts, b, counts[b] + T.Select(bin_[0] == b, value[0], T.uint32(0)))

    def _level(self) -> Expr:
        """Of a search, 0 the coarsest; LEVELS for other passes."""
        return T.bind(T.bitwise_and(self[PASS], T.int32(7)))

    def advance(self, bins: Buffer, weight: Expr) -> None:
        """From what the last pass found, bins u32 [BINS] or the weight, to the next pass."""
        done, level = T.bind(self[PASS]), self._level()
        with T.If(T.And(done >= 0, T.And(done < WITHIN, level < LEVELS))), T.Then():
            self._narrow(bins, level)
        with T.If(done == LARGEST + LEVELS - 1), T.Then():
            self._keep(T.bind(self[REST]))
        with T.If(done == NUCLEUS + LEVELS - 1), T.Then():
            self._keep(self._ids_for_rest())
        with T.If(done == DRAW + LEVELS - 1), T.Then():
            store(self.state, REST, self._ids_for_rest())
        with T.If(done == WEIGH), T.Then():
            edge = self.weight(T.bind(self[EDGE]))
            scale = f32(2.0**31) / (weight + T.Cast("float32", self[TIES]) * edge)
            store(self.state, SCALE, T.reinterpret("int32", T.bind(scale)))
            self._search(unsigned(self.param(TOP_P)))
        with T.If(done == TOTAL), T.Then():
            edge = self.filtered_share(self.weight(T.bind(self[EDGE])))
            total = T.bind(bins[0] + unsigned(self[TIES]) * edge)
            place = _high_product(T.bind(unsigned(self.param(UNIFORM))), total)
            self._search(place + T.uint32(1))
        store(self.state, PASS, self._next(done))

    def _next(self, done: Expr) -> Expr:
        """The pass after `done`, without those that the row has no use for."""
        begin = T.Select(self.has_top_k(), T.int32(LARGEST), T.int32(WEIGH))
        after_weigh = T.Select(self.param(TOP_P) > 0, T.int32(NUCLEUS), T.int32(TOTAL))
        after_total = T.Select(self.is_ordered(), T.int32(WITHIN), T.int32(DRAW))
        jumped = T.Select(done == WEIGH, after_weigh, T.Select(done == TOTAL, after_total, done + 1))
        return T.bind(T.Select(done == START, begin, T.Select(done >= WITHIN, done, jumped)))

    def _search(self, rest: Expr) -> None:
        store(self.state, REST, T.Cast("int32", rest))
        store(self.state, LOW, T.int32(0))

    def _keep(self, ties: Expr) -> None:
        store(self.state, EDGE, self[LOW])
        store(self.state, TIES, ties)

    def _ids_for_rest(self) -> Expr:
        """How many ids of the found key, all of one weight, reach the rest."""
        share = T.bind(T.max(self.share(self.weight(T.bind(self[LOW]))), T.uint32(1)))
        ids = T.bind(T.Cast("int32", T.floordiv(unsigned(self[REST]) - T.uint32(1), share)) + 1)
        return T.bind(T.Select(self[LOW] == self[EDGE], T.min(ids, self[TIES]), ids))

    def _narrow(self, bins: Buffer, level: Expr) -> None:
        """To the bin with the rest. Of the ids at the edge those that are kept count, here, as they may be few of many
        whose shares would not fit a word."""
        shift = T.bind((LEVELS - 1 - level) * 4)
        edge, weight = T.bind(self[EDGE]), self.weight(T.bind(self[EDGE]))
        share = T.Select(self[PASS] >= DRAW, self.filtered_share(weight), self.share(weight))
        kept = T.bind(unsigned(self[TIES]) * share)
        own = T.bind(T.shift_right(edge - self[LOW], shift))  # the edge is never below the search

        def value(b: Expr) -> Expr:
            return bins[b] + T.Select(own == b, kept, T.uint32(0))

        place = reached(BINS, value, unsigned(self[REST]))
        store(self.state, LOW, self[LOW] + T.shift_left(place.index, shift))
        store(self.state, REST, T.Cast("int32", place.rest))


@dataclass(frozen=True)
class Reach:
    index: Expr
    rest: Expr  # what is to be reached at the index, at most what is there


def reached(n: int, value: Callable[[Expr], Expr], rest: Expr) -> Reach:
    """The first of n places at which the u32 values add up to `rest`; without one the last whose value is not 0."""
    index = local(1, "int32")
    left = local(3, "uint32")  # what is still to go; that at the index, and the value there
    found = local(1, "int32")
    store(index, 0, T.int32(0))
    store(found, 0, T.int32(0))
    for i in range(3):
        store(left, i, rest if i == 0 else T.uint32(0))
    with T.serial(0, n) as i, T.If(found[0] == 0), T.Then():
        own = T.bind(value(i))
        with T.If(own > T.uint32(0)), T.Then():
            store(index, 0, i)
            store(left, 1, left[0])
            store(left, 2, own)
            with T.If(own >= left[0]):
                with T.Then():
                    store(found, 0, T.int32(1))
                with T.Else():
                    store(left, 0, left[0] - own)
    return Reach(T.bind(index[0]), T.bind(T.min(left[1], left[2])))


def _high_product(a: Expr, b: Expr) -> Expr:
    """The high word of the product of two u32."""
    half = T.uint32(16)
    a_high, a_low = T.bind(T.shift_right(a, half)), T.bind(T.bitwise_and(a, T.uint32(0xFFFF)))
    b_high, b_low = T.bind(T.shift_right(b, half)), T.bind(T.bitwise_and(b, T.uint32(0xFFFF)))
    first = T.bind(a_high * b_low + T.shift_right(a_low * b_low, half))
    second = T.bind(a_low * b_high + T.bitwise_and(first, T.uint32(0xFFFF)))
    return T.bind(a_high * b_high + T.shift_right(first, half) + T.shift_right(second, half))
