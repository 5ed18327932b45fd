"""The work of a call, from what the plan states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dsv3c.runtime.artifact.costs import Cost, StepShape, Work, active_experts, call_work, parse_cost, total
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.errors import PlanInvalid

DECODE = StepShape("decode", tokens=1, rows=1, start=9)
PREFILL = StepShape("prefill", tokens=4, rows=2, start=10)


def test_pairs_are_the_causal_triangle_behind_the_depth() -> None:
    assert [step.positions for step in (DECODE, PREFILL)] == [10, 14]
    assert PREFILL.pairs == 11 + 12 + 13 + 14
    assert DECODE.pairs == 10


def test_sequences_side_by_side_see_each_its_own_positions() -> None:
    batch = StepShape("decode", tokens=3, rows=3, start=9, sequences=3)
    assert (batch.positions, batch.pairs) == (3 * DECODE.positions, 3 * DECODE.pairs)
    pairs = StepShape("decode", tokens=6, rows=6, start=10, sequences=3)
    assert (pairs.positions, pairs.pairs) == (3 * 12, 3 * (11 + 12))


def test_a_batch_reads_weights_once_and_the_experts_that_its_tokens_choose_together() -> None:
    batch = StepShape("decode", tokens=3, rows=3, start=9, sequences=3)
    assert call_work(Cost(row_flops=6, cache_row_bytes=7), 100, batch) == Work(100, 3 * 10 * 7, 3 * 6)
    experts = call_work(Cost(experts=8, top_k=2), 80, batch)
    assert experts.weight_bytes == pytest.approx(10 * 8 * (1 - (1 - 2 / 8) ** 3))


def test_a_product_reads_its_weight_once_and_works_for_each_row() -> None:
    assert call_work(Cost(row_flops=6), 100, PREFILL) == Work(100, 0, 4 * 6)
    assert call_work(Cost(rows="R", row_flops=6), 100, PREFILL) == Work(100, 0, 2 * 6)


def test_products_of_int8_are_told_from_others() -> None:
    cost = Cost(factors="int8", row_flops=6, pair_flops=3)
    assert call_work(cost, 0, PREFILL) == Work(0, 0, 4 * 6 + PREFILL.pairs * 3, 4 * 6)
    assert parse_cost(Fields(cost.to_json(), "plan.costs.a", PlanInvalid)) == cost
    with pytest.raises(PlanInvalid, match=r"factors.* 'int9' is neither float32 nor int8"):
        parse_cost(Fields({"factors": "int9"}, "plan.costs.a", PlanInvalid))


def test_no_row_reads_no_weight() -> None:
    assert call_work(Cost(rows="R", row_flops=6), 100, StepShape("prefill", 4, 0, 0)) == Work()


def test_a_table_is_read_by_row() -> None:
    assert call_work(Cost(table_rows=50), 1000, PREFILL).weight_bytes == 4 * 20
    assert call_work(Cost(table_rows=2), 1000, PREFILL).weight_bytes == 1000


def test_attention_reads_each_position_once_and_works_for_each_pair() -> None:
    cost = Cost(pair_flops=3, position_flops=5, cache_row_bytes=7)
    assert call_work(cost, 0, PREFILL) == Work(0, 14 * 7, PREFILL.pairs * 3 + 14 * 5)
    assert call_work(replace(cost, factors="int8"), 0, PREFILL).int8_flops == 14 * 5


def test_attention_that_chooses_works_for_no_more_pairs_than_that() -> None:
    cost = Cost(pair_flops=3, cache_row_bytes=7, chosen=12)
    assert PREFILL.pairs_chosen(12) == 11 + 12 + 12 + 12 and PREFILL.pairs_chosen(5) == 4 * 5
    assert PREFILL.pairs_chosen(100) == PREFILL.pairs
    assert call_work(cost, 0, PREFILL) == Work(0, 14 * 7, 47 * 3)
    assert call_work(cost, 0, StepShape("decode", 1, 1, 99)) == Work(0, 12 * 7, 12 * 3)


def test_one_token_reads_the_chosen_and_the_shared_experts() -> None:
    cost = Cost(row_flops=1, experts=16, top_k=4, shared=1)
    assert active_experts(cost, 1) == 5
    assert call_work(cost, 17 * 10, DECODE).weight_bytes == 50


def test_many_tokens_read_the_experts_that_chance_gives() -> None:
    cost = Cost(experts=4, top_k=2, shared=1)
    assert active_experts(cost, 2) == 4 * (1 - 0.5**2) + 1
    assert active_experts(cost, 1000) == pytest.approx(5)


def test_work_adds_up() -> None:
    assert total([]) == Work()
    both = total([Work(1, 2, 3), Work(10, 20, 30)])
    assert both == Work(11, 22, 33)
    assert both.bytes == 33
    assert both.over(11) == Work(1, 2, 3)


def parse(content: Any) -> Cost:
    return parse_cost(Fields(content, "costs.k", PlanInvalid))


def test_costs_are_read_and_unknown_fields_left_alone() -> None:
    assert parse({"rows": "R", "row_flops": 8, "of a later version": 1}) == Cost(rows="R", row_flops=8)
    assert parse({}) == Cost()


@pytest.mark.parametrize(
    "content",
    [
        {"rows": "S"},
        {"row_flops": -1},
        {"row_flops": 1.5},
        {"cache_row_bytes": "7"},
        {"experts": 4},
        {"experts": 4, "top_k": 5},
        [],
    ],
)
def test_wrong_costs_are_refused(content: Any) -> None:
    with pytest.raises(PlanInvalid):
        parse(content)
