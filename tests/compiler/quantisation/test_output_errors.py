"""What formats do to outputs: told from sums over the rows, it is what the rows themselves say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.core.ir import TensorType, Value
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats.quant import stored
from dsv3c.compiler.formats.table import FORMATS
from dsv3c.compiler.quantisation.calibration.statistics import matrix_inputs
from dsv3c.compiler.quantisation.output_errors import OutputErrors

TRIED = ["int4-g32", "int8", "bfloat16"]
RNG = np.random.default_rng(3)


def param(name: str, *shape: int) -> Value:
    return Value("param", (), {"name": name}, TensorType("f32", shape))


def numbers(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def errors_of(pairs: list[tuple[Any, Any]]) -> dict[str, float]:
    """By the rows: pairs of rows [n, K] and the matrix [N, K] that they meet."""
    power = sum(np.square(rows @ w.T).sum() for rows, w in pairs)
    made = {name: [decoded(stored(w, FORMATS[name])) for _, w in pairs] for name in TRIED}
    apart = {
        name: sum(np.square(rows @ (w - v).T).sum() for (rows, w), v in zip(pairs, made[name], strict=True))
        for name in TRIED
    }
    return {name: float(apart[name] / power) for name in TRIED}


def test_one_matrix_has_the_error_of_its_outputs() -> None:
    weight, w, rows = param("w", 24, 64), numbers(24, 64), numbers(90, 64) * np.linspace(0.1, 4, 64, dtype=np.float32)
    seen = OutputErrors({weight: TRIED})
    assert seen.look(weight, None, w, [matrix_inputs(rows)], "")() is w
    assert seen.relative([weight]) == pytest.approx(errors_of([(rows, w)]), rel=1e-3)


def test_experts_count_by_their_own_tokens_in_whatever_order_they_come() -> None:
    weight, stack = param("w.*", 2, 2, 8, 32), numbers(2, 2, 8, 32)
    rows = [numbers(50, 32), 3 * numbers(7, 32)]
    seen = OutputErrors({weight: TRIED})
    for expert in (1, 0):
        seen.look(weight, expert, stack[expert], [matrix_inputs(rows[expert])], "")
    pairs = [(rows[expert], matrix) for expert in (0, 1) for matrix in stack[expert]]
    assert seen.relative([weight]) == pytest.approx(errors_of(pairs), rel=1e-3)


def test_heads_have_inputs_of_their_own_and_recipes_of_a_weight_count_together() -> None:
    first, second = param("a", 2, 8, 32), param("b", 8, 32)
    heads, w, rows = numbers(2, 8, 32), numbers(8, 32), [numbers(40, 32) for _ in range(3)]
    seen = OutputErrors({first: TRIED, second: TRIED})
    seen.look(first, None, heads, [matrix_inputs(each) for each in rows[:2]], "")
    seen.look(second, None, w, [matrix_inputs(rows[2])], "")
    expected = errors_of([(rows[0], heads[0]), (rows[1], heads[1]), (rows[2], w)])
    assert seen.relative([first, second]) == pytest.approx(expected, rel=1e-3)


def test_statistics_of_a_layer_count_as_one_token() -> None:
    weight, stack, rows = param("w.*", 2, 1, 8, 32), numbers(2, 1, 8, 32), [numbers(50, 32), numbers(50, 32)]
    own, few = OutputErrors({weight: TRIED}), OutputErrors({weight: TRIED})
    own.look(weight, 0, stack[0], [matrix_inputs(rows[0])], "")
    few.look(weight, 0, stack[0], [matrix_inputs(rows[0])], "")
    few.look(weight, 1, 100 * stack[1], [matrix_inputs(rows[1] / 100)], "it saw 3 tokens of 32")
    assert few.relative([weight]) == pytest.approx(own.relative([weight]), rel=0.05)


def test_what_nobody_asks_for_is_not_measured_and_what_cannot_be_held_costs_all() -> None:
    asked, other = param("w", 8, 32), param("o", 8, 32)
    seen = OutputErrors({asked: ["int4-g32", "float16"]})
    seen.look(other, None, numbers(8, 32), [matrix_inputs(numbers(9, 32))], "")
    assert seen.relative([other]) == seen.relative([asked]) == {}
    large = numbers(8, 32) + np.float32(1e5)
    seen.look(asked, None, large, [matrix_inputs(numbers(9, 32))], "")
    found = seen.relative([asked])
    assert found["float16"] == np.inf and 0 < found["int4-g32"] < 1
