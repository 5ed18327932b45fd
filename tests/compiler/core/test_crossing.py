"""The step size at which materialised attention begins to pay."""

from __future__ import annotations

import pytest

from dsv3c.compiler.core.crossing import materialize_from
from dsv3c.runtime.artifact.plan import NEVER

V3 = {"rank": 512, "nope": 128, "rope": 64, "v": 128}


def test_it_is_where_the_operations_are_equal() -> None:
    tokens = 512 * 256 / (2 * 512 + 64 - (128 + 64 + 128))
    assert materialize_from(**V3) == 171 == -(-tokens // 1)


def test_a_faster_absorbed_kernel_moves_it_up() -> None:
    assert materialize_from(**V3, absorbed_rate=2.5) == 1138


def test_faster_rebuilding_moves_it_down() -> None:
    assert materialize_from(**V3, rebuild_rate=1.5) == 114


@pytest.mark.parametrize(("rank", "rate"), [(16, 1.0), (512, 4.0)])
def test_it_never_pays_when_absorbed_attention_costs_no_more(rank: int, rate: float) -> None:
    assert materialize_from(rank, 128, 64, 128, rate) == NEVER
