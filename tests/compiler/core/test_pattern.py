from __future__ import annotations

import pytest

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, parse_graph, parse_type
from dsv3c.compiler.core.pattern import Match, Miss, P, Pattern, find

x, y, z = (ops.leaf("input", name, parse_type("f32[T, 4]")) for name in "xyz")


def op(name: str, *inputs: Value, **attrs: object) -> Value:
    return ops.apply(name, inputs, attrs)  # type: ignore[arg-type]


def match(pattern: Pattern, value: Value) -> Match | None:
    return find(pattern, value, Miss())


def bound(pattern: Pattern, value: Value) -> dict[str, Value]:
    found = match(pattern, value)
    assert found is not None
    return found.bound


def test_names_bind_the_values_they_stand_for() -> None:
    root = op("sub", op("cos", x), y)
    found = match(P.sub(P.cos(P.any("a"), name="cosine"), P.any("b"), name="root"), root)
    assert found is not None
    assert found.root == root
    assert found.bound == {"a": x, "b": y, "cosine": root.inputs[0], "root": root}
    assert found.get("c") is None


@pytest.mark.parametrize("commutative", ["add", "mul"])
def test_sums_and_products_match_in_either_order(commutative: str) -> None:
    pattern = getattr(P, commutative)(P.cos(P.any("a")), P.any("b"))
    assert bound(pattern, op(commutative, op("cos", x), y)) == {"a": x, "b": y}
    assert bound(pattern, op(commutative, y, op("cos", x))) == {"a": x, "b": y}


def test_other_operations_match_in_their_order_alone() -> None:
    pattern = P.sub(P.cos(P.any("a")), P.any("b"))
    assert match(pattern, op("sub", y, op("cos", x))) is None


def test_a_repeated_name_demands_the_same_value() -> None:
    square = P.mul(P.any("a"), P.any("a"))
    assert bound(square, op("mul", x, x)) == {"a": x}
    assert match(square, op("mul", x, y)) is None


def test_matching_goes_back_when_a_later_operand_disagrees() -> None:
    """The inner product fits in both orders, but only the second agrees with the outer operand."""
    pattern = P.sub(P.mul(P.any("a"), P.any("b")), P.any("a"))
    assert bound(pattern, op("sub", op("mul", x, y), y)) == {"a": y, "b": x}


def test_either_takes_the_first_alternative_that_matches() -> None:
    pattern = P.either(P.cos(P.any("a"), name="first"), P.any("b"))
    assert bound(pattern, op("cos", x)) == {"a": x, "first": op("cos", x)}
    assert bound(pattern, op("sin", x)) == {"b": op("sin", x)}


def test_either_goes_back_to_a_later_alternative() -> None:
    pattern = P.sub(P.either(P.cos(P.any("a")), P.any("a")), P.any("a"))
    assert bound(pattern, op("sub", op("cos", x), x)) == {"a": x}
    assert bound(pattern, op("sub", op("cos", x), op("cos", x))) == {"a": op("cos", x)}


def test_scaled_matches_with_and_without_the_factor() -> None:
    pattern = P.sub(P.scaled(P.cos(P.any("a")), "factor"), P.any("b"))
    found = match(pattern, op("sub", op("mul", op("cos", x), ops.const(2.5)), y))
    assert found is not None
    assert found.scalar("factor") == 2.5
    found = match(pattern, op("sub", op("cos", x), y))
    assert found is not None
    assert found.scalar("factor") == 1.0


def test_attributes_are_demanded() -> None:
    first = op("slice", x, axis=-1, start=0, stop=2)
    assert match(P.slice(P.any("a"), start=0), first) is not None
    assert match(P.slice(P.any("a"), start=1), first) is None
    assert match(P.slice(P.any("a"), step=2), first) is None


def test_an_attribute_given_as_a_type_takes_any_value_of_it() -> None:
    assert match(P.const(data=float), ops.const(2.0)) is not None
    assert match(P.const(data=float), ops.const((2.0,))) is None
    assert match(P.const(data=tuple), ops.const((2.0,))) is not None


def test_the_number_of_operands_is_that_of_the_pattern() -> None:
    joined = op("concat", x, y, z, axis=-1)
    assert match(P.concat(P.any("a"), P.any("b")), joined) is None
    assert match(P.concat(P.any("a"), P.any("b"), P.any("c")), joined) is not None


def test_a_pattern_without_operands_takes_any() -> None:
    assert match(P.concat(name="joined"), op("concat", x, y, axis=-1)) is not None


def test_span_gives_the_columns_of_a_slice() -> None:
    found = match(P.slice(P.any("a"), name="part"), op("slice", x, axis=-1, start=1, stop=4, step=2))
    assert found is not None
    assert found.span("part") == range(1, 4, 2)
    found = match(P.slice(P.any("a"), name="part"), op("slice", x, axis=-1, start=1, stop=4))
    assert found is not None
    assert found.span("part") == range(1, 4)


def test_a_miss_tells_the_deepest_point_that_was_reached() -> None:
    graph = parse_graph(
        """graph g {
        %x: f32[4] = input()
        %1: f32[4] = sin(%x)
        %2: f32[4] = cos(%1)
        %3: f32[4] = rsqrt(%2)
        return near=%3, far=%1
        }"""
    )
    pattern, miss = P.rsqrt(P.cos(P.cos(P.any("a")))), Miss()
    assert find(pattern, graph.result("near"), miss) is None
    assert find(pattern, graph.result("far"), miss) is None
    assert miss.depth == 2
    assert miss.reason == "at <sin : f32[4]>: wanted cos"


def test_a_miss_does_not_count_operations_of_abandoned_alternatives() -> None:
    pattern, miss = (
        P.either(P.sub(P.cos(P.any("a")), P.rsqrt(P.any("b"))), P.sub(P.cos(P.any("a")), P.sin(P.any("b")))),
        Miss(),
    )
    assert find(pattern, op("sub", op("cos", x), op("sigmoid", y)), miss) is None
    assert miss.depth == 2


def test_a_miss_names_attributes_and_bindings() -> None:
    miss = Miss()
    assert find(P.cos(P.slice(P.any("a"), start=1)), op("cos", op("slice", x, axis=-1, start=0, stop=2)), miss) is None
    assert "wanted slice with {'start': 1}" in miss.reason
    miss = Miss()
    assert find(P.sub(P.any("a"), P.any("a")), op("sub", x, y), miss) is None
    assert "wanted the value bound to a before" in miss.reason
