"""What a step must read and compute, from the plan: the yardstick for measured times.

plan.json may hold `costs`, by kernel. From it and the sizes of the buffers of a call follow, for a step of T tokens of
one or more sequences, each behind d tokens that are in the cache already:

* weight bytes: all weight operands of the call, once for all its tokens, but `table_rows` lookups read one row of a
  table each, and kernels over experts read the active ones. At T = 1 these are exactly the chosen and the shared
  experts. Beyond, the count is the expectation when every token chooses at random, E·(1 − (1 − k/E)^T) + shared:
  routing that prefers some experts reads less.
* cache bytes: every visible position once a step, also where a kernel reads it again from a nearer cache.
* operations: two a multiply-add of the matrix products and of attention over the visible positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any

from dsv3c.runtime.artifact.fields import Fields

FLOAT32, INT8 = "float32", "int8"


@dataclass(frozen=True)
class Cost:
    """One kernel's cost, each part 0 unless the plan says otherwise.

    rows: "T" or "R", the number of rows of a call. row_flops: operations a row. position_flops: operations a position
    of the context, once a call. factors: what these two multiply, "float32" or "int8", all others multiply float32.
    pair_flops: operations for each pair of a token and a position it sees. cache_row_bytes: bytes of a position of the
    cache. chosen: positions that a token sees at most, 0 for all before it. table_rows: rows of the weight of which a
    call reads one for each of its rows.
    experts, top_k, shared: experts stacked in the weight are the first two's choice, and always the shared.
    """

    rows: str = "T"
    factors: str = FLOAT32
    row_flops: int = 0
    pair_flops: int = 0
    position_flops: int = 0
    cache_row_bytes: int = 0
    chosen: int = 0
    table_rows: int = 0
    experts: int = 0
    top_k: int = 0
    shared: int = 0

    def to_json(self) -> dict[str, Any]:
        stated = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in stated if value != field.default}


@dataclass(frozen=True)
class StepShape:
    """What one step is given: its entry, T tokens, R rows with logits. Its sequences have an equal share of the tokens,
    each behind `start` cached ones of its own."""

    entry: str
    tokens: int
    rows: int
    start: int
    sequences: int = 1

    @property
    def positions(self) -> int:
        """Positions of the cache that the step sees, its own included."""
        return self.sequences * self.start + self.tokens

    @property
    def pairs(self) -> int:
        """Pairs of a token and a position it sees."""
        return self.tokens * self.start + self.tokens * (self.tokens // self.sequences + 1) // 2

    def pairs_chosen(self, most: int) -> int:
        """Pairs of a token and those of the positions before it that it sees where it chooses at most so many."""
        each = self.tokens // self.sequences
        below = min(max(most - self.start, 0), each)  # tokens of a sequence that see all
        return self.sequences * (below * self.start + below * (below + 1) // 2 + (each - below) * most)


@dataclass(frozen=True)
class Work:
    """Bytes of weights and cache read, and operations done; of these, those of int8."""

    weight_bytes: float = 0
    cache_bytes: float = 0
    flops: float = 0
    int8_flops: float = 0

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over(self, count: int) -> Work:
        """The mean of `count` pieces of work whose sum this is."""
        return Work(*(part / count for part in astuple(self)))


def total(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


def call_work(cost: Cost, weight_bytes: int, step: StepShape) -> Work:
    """The work of one call whose weight operands are `weight_bytes` long."""
    rows = step.rows if cost.rows == "R" else step.tokens
    pairs = step.pairs_chosen(cost.chosen) if cost.chosen else step.pairs
    by_weights = cost.row_flops * rows + cost.position_flops * step.positions
    return Work(
        weight_bytes=weight_bytes * _share_read(cost, rows),
        cache_bytes=cost.cache_row_bytes * min(step.positions, pairs),
        int8_flops=by_weights if cost.factors == INT8 else 0,
        flops=by_weights + cost.pair_flops * pairs,
    )


def active_experts(cost: Cost, tokens: int) -> float:
    """Experts that a step of `tokens` tokens reads: exact for one token, expected for more."""
    chosen = cost.experts * (1 - (1 - cost.top_k / cost.experts) ** tokens)
    return chosen + cost.shared


def parse_cost(content: Fields) -> Cost:
    """Checked cost; fields this version does not know are ignored. Raises PlanInvalid."""
    rows = content.string("rows", default="T")
    if rows not in ("T", "R"):
        raise content.fail("rows", f"{rows!r} is neither T nor R")
    factors = content.string("factors", default=FLOAT32)
    if factors not in (FLOAT32, INT8):
        raise content.fail("factors", f"{factors!r} is neither {FLOAT32} nor {INT8}")
    names = [field.name for field in fields(Cost) if field.name not in ("rows", "factors")]
    cost = Cost(rows, factors, **{name: content.integer(name, 0, 2**53, default=0) for name in names})
    if cost.experts and not 1 <= cost.top_k <= cost.experts:
        raise content.fail("top_k", f"is {cost.top_k}, it must be from 1 to {cost.experts}")
    return cost


def _share_read(cost: Cost, rows: int) -> float:
    """The part of the weight operands that a call reads."""
    if rows == 0:
        return 0.0
    if cost.table_rows:
        return min(1.0, rows / cost.table_rows)
    if cost.experts:
        return active_experts(cost, rows) / (cost.experts + cost.shared)
    return 1.0
