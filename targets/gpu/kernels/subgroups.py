"""Exchanges between the threads of a workgroup, and reductions made of them.

A run is 32 neighbouring threads. It is reduced by a butterfly: each thread takes what the thread has whose number
differs in bit 16, then 8, 4, 2 and 1. The four runs of a workgroup then meet in shared memory, behind one barrier.

Where subgroups are known to be that wide, registers are shuffled. In a narrower subgroup the wider steps go through
shared memory, with a barrier each; so do all steps on devices without shuffles. What is added to what is the same in
all three, and so are the bits of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dsv3c.targets import tir as T
from dsv3c.targets.calls.operands import Operand, Rows
from dsv3c.targets.gpu.capabilities import SUBGROUP_32, SUBGROUP_SHUFFLE
from dsv3c.targets.gpu.kernels.frame import (
    THREADS,
    Buffers,
    Expr,
    Extent,
    Variant,
    barrier,
    local,
    prim_func,
    shared,
    store,
)

RUN = 32
RUNS = THREADS // RUN
MASKS = (16, 8, 4, 2, 1)

# Functions that the languages have or are given: (value, mask) -> value; () -> threads of a subgroup.
SHUFFLE_XOR, SUBGROUP_SIZE = "dsv3c_shuffle_xor", "dsv3c_subgroup_size"

Values = tuple[Expr, ...]


@dataclass(frozen=True)
class Exchange:
    """A way to get what other threads have.

    width: threads, side by side, that shuffle their registers; None: as many as the device has in a subgroup, which is
    known when it loads the kernel.
    """

    width: int | None = 1
    requires: frozenset[str] = frozenset()


SHUFFLED = Exchange(RUN, frozenset({SUBGROUP_32}))
PARTLY_SHUFFLED = Exchange(None, frozenset({SUBGROUP_SHUFFLE}))
SHARED = Exchange()


def forms(
    operands: Sequence[Operand],
    grid: tuple[Extent, ...],
    rows: Rows,
    emit: Callable[[Exchange, Buffers, Sequence[Expr], Expr], None],
    most_rows: int | None = None,
) -> tuple[Variant, ...]:
    """A form of a kernel for each way of exchange, that for any device last. emit: the body, as `prim_func` takes it,
    for one of them."""

    def form(exchange: Exchange) -> Variant:
        body = partial(emit, exchange)
        return Variant(grid, lambda: prim_func(operands, grid, body), rows, most_rows, exchange.requires)

    return tuple(map(form, (SHUFFLED, PARTLY_SHUFFLED, SHARED)))


class Runs:
    """The runs of a workgroup, with the shared memory that they exchange values by.

    dtypes: of the values that are reduced together. at_once: how many of each are exchanged at once. Made at the
    outermost scope of a kernel. Every thread must come to each method, and pass a barrier before the next one.
    """

    def __init__(
        self, exchange: Exchange, thread: Expr, dtypes: Sequence[str] = ("float32",), at_once: int = 1
    ) -> None:
        self._width, self._thread, self._dtypes = exchange.width, thread, tuple(dtypes) * at_once
        self.lane = T.bind(T.bitwise_and(thread, T.int32(RUN - 1)))
        self.run = T.bind(T.shift_right(thread, T.int32(RUN.bit_length() - 1)))
        self._firsts = [shared(RUNS, dtype) for dtype in dtypes]
        self._cells = [local(1, dtype) for dtype in dtypes]
        # Two by turns, so that a step need not wait until the last one's values are read.
        alone = self._width == RUN
        self._spaces = [] if alone else [[shared(THREADS, dtype) for dtype in self._dtypes] for _ in range(2)]

    def others(self, values: Sequence[Expr], mask: int) -> Values:
        """The values of the thread whose number differs in the bit `mask`; at most as many as are exchanged at once."""
        if self._width is not None:
            return self._shuffled(values, mask) if mask < self._width else self._shared(values, mask)
        found = [local(1, dtype) for dtype, _ in zip(self._dtypes, values, strict=False)]
        with T.If(T.int32(mask) < T.call_extern("int32", SUBGROUP_SIZE)):
            with T.Then():
                for at, value in zip(found, self._shuffled(values, mask), strict=True):
                    store(at, 0, value)
            with T.Else():
                for at, value in zip(found, self._shared(values, mask), strict=True):
                    store(at, 0, value)
        return tuple(T.bind(at[0]) for at in found)

    def of_run(self, values: Values, combine: Callable[[Values, Values], Values], count: int = THREADS) -> Values:
        """The values of a run combined, to all of its threads. count: threads that have any; the others have what
        changes nothing."""
        for mask in MASKS:
            if mask < count:
                values = self._kept(combine(values, self.others(values, mask)))
        return values

    def of_all(self, values: Values, combine: Callable[[Values, Values], Values], count: int = THREADS) -> Values:
        """The values of the first `count` threads combined, to all threads. What was written to other shared memory
        before is seen by all threads after."""
        values = self.of_run(values, combine, count)
        with T.If(self.lane == 0), T.Then():
            for first, value in zip(self._firsts, values, strict=True):
                store(first, self.run, value)
        barrier()
        found = [tuple(T.bind(first[run]) for first in self._firsts) for run in range(min(RUNS, -(-count // RUN)))]
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=False)
            found = [*(self._kept(combine(*pair)) for pair in pairs), *found[len(found) // 2 * 2 :]]
        return found[0]

    def reduced(self, value: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
        """`of_all` for one value."""
        return self.of_all((value,), lambda a, b: (combine(a[0], b[0]),))[0]

    def scattered(self, values: Sequence[Expr]) -> Expr:
        """The sums over a run of each of N values, N a power of two up to 32: thread i gets that of value i * N // 32.
        N / 2 are exchanged at once: in each step a thread hands on half of the sums, and goes on with the other."""
        for mask in MASKS:
            upper, half = T.bind(T.bitwise_and(self._thread, T.int32(mask)) != 0), len(values) // 2
            pairs = list(zip(values[:half], values[half:], strict=False))
            kept = [T.Select(upper, b, a) for a, b in pairs] or values
            sent = [T.bind(T.Select(upper, a, b)) for a, b in pairs] or values
            got = self.others(sent, mask)
            values = [T.bind(own + other) for own, other in zip(kept, got, strict=True)]
        return values[0]

    def renew_run(self) -> None:
        """Must stand between two exchanges within runs if no barrier does: shared memory may still be read."""
        self._barrier_if(lambda width: width < RUN)

    def renew_all(self) -> None:
        """Must stand between two `of_all` of all threads if no barrier does; steps in shared memory have barriers."""
        self._barrier_if(lambda width: width >= RUN)

    def _barrier_if(self, needed: Callable[[Expr], Expr]) -> None:
        if self._width is None:
            with T.If(needed(T.call_extern("int32", SUBGROUP_SIZE))), T.Then():
                barrier()
        elif needed(self._width):
            barrier()

    def _kept(self, values: Values) -> Values:
        """In registers: TVM's analyser would put the values of names in the place of the names, which doubles a choice
        between two of them with every step."""
        for cell, value in zip(self._cells, values, strict=True):
            store(cell, 0, value)
        return tuple(T.bind(cell[0]) for cell in self._cells)

    def _shuffled(self, values: Sequence[Expr], mask: int) -> Values:
        own = zip(self._dtypes, values, strict=False)
        return tuple(T.bind(T.call_extern(dtype, SHUFFLE_XOR, value, T.int32(mask))) for dtype, value in own)

    def _shared(self, values: Sequence[Expr], mask: int) -> Values:
        spaces = self._spaces[MASKS.index(mask) % 2]
        for space, value in zip(spaces, values, strict=False):
            store(space, self._thread, value)
        barrier()
        other = T.bind(T.bitwise_xor(self._thread, T.int32(mask)))
        return tuple(T.bind(space[other]) for space, _ in zip(spaces, values, strict=False))


def larger(a: Values, b: Values) -> Values:
    """Of two pairs (value, number) that with the larger value, of equals that with the lower number."""
    taken = T.bind(T.Or(b[0] > a[0], T.And(b[0] == a[0], b[1] < a[1])))
    return T.Select(taken, b[0], a[0]), T.Select(taken, b[1], a[1])
