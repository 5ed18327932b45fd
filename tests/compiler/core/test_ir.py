from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import (
    Dim,
    Graph,
    TensorType,
    Value,
    dim_product,
    dim_size,
    is_weight,
    parse_graph,
    parse_type,
    topological_order,
    value_names,
)
from dsv3c.compiler.errors import IrLineError, IrSyntaxError

DTYPES = ("f32", "f16", "bf16", "i32", "i8", "u8", "bool", "int8", "int4-g32-asym", "q8-g64")
DIMS = st.one_of(st.integers(0, 1 << 31), st.sampled_from(["T", "R", "S", "16*P*S", "2*T"]))
SHAPES = st.lists(DIMS, max_size=4).map(tuple)
TYPES = st.builds(TensorType, st.sampled_from(DTYPES), SHAPES, st.sampled_from(["", "rows16"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ATTRS = st.dictionaries(
    st.sampled_from(["axis", "eps", "shape", "data", "interleave", "name", "} = ("]),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6),
    max_size=3,
)
LEAF_NAMES = st.sampled_from(
    ["tokens", "cache.0", "model.layers.0.mlp.experts.*.up_proj.weight", "a.{b,c}.weight", "x)y", "odd:name", "%"]
)
OPS = ("add", "linear", "concat", "scatter_rows", "not_an_op")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any typed DAG: types need not follow the rules of the operations, the text has to survive all the same."""
    names = draw(st.lists(LEAF_NAMES, min_size=1, max_size=4, unique=True))
    values = [ops.leaf(draw(st.sampled_from(["input", "param"])), name, draw(TYPES)) for name in names]
    for _ in range(draw(st.integers(0, 8))):
        inputs = tuple(draw(st.lists(st.sampled_from(values), max_size=3)))
        values.append(Value(draw(st.sampled_from(OPS)), inputs, draw(ATTRS), draw(TYPES)))
    results = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return Graph("g", tuple((f"r{index}", value) for index, value in enumerate(results)))


def leaf(name: str, *shape: Dim) -> Value:
    return ops.leaf("input", name, TensorType("f32", shape))


@given(graphs())
def test_the_text_of_a_graph_parses_back_to_an_equal_graph(graph: Graph) -> None:
    parsed = parse_graph(str(graph))
    assert parsed == graph
    assert str(parsed) == str(graph)


def test_infinite_and_tiny_numbers_survive_the_text() -> None:
    graph = Graph("g", (("r", ops.const((-math.inf, math.inf, 1e-20, -0.0))),))
    assert parse_graph(str(graph)).result("r").attrs["data"] == (-math.inf, math.inf, 1e-20, -0.0)


@given(TYPES)
def test_the_text_of_a_type_parses_back(type: TensorType) -> None:
    assert parse_type(str(type)) == type


def test_values_are_equal_exactly_when_they_compute_the_same() -> None:
    x, y = leaf("x", 4), leaf("y", 4)
    add = ops.apply("add", (x, y), {})
    assert add == ops.apply("add", (leaf("x", 4), leaf("y", 4)), {})
    assert hash(add) == hash(ops.apply("add", (x, y), {}))
    others = [
        ops.apply("add", (y, x), {}),
        ops.apply("mul", (x, y), {}),
        ops.apply("add", (x, leaf("y", 1)), {}),
        add.replace(attrs={"arena": (0,)}),
        ops.leaf("param", "x", x.type),
        "add",
    ]
    assert all(add != other for other in others)


def test_attributes_are_equal_in_any_order() -> None:
    x = leaf("x", 4)
    forward = {"axis": 0, "start": 1, "stop": 2}
    backward = dict(reversed(forward.items()))
    assert ops.apply("slice", (x,), forward) == ops.apply("slice", (x,), backward)


def test_equal_subexpressions_are_one_node() -> None:
    first, second = (ops.apply("mul", (leaf("x", 4), leaf("x", 4)), {}) for _ in range(2))
    graph = Graph("g", (("r", ops.apply("add", (first, second), {})),))
    assert [value.op for value in graph.values()] == ["input", "mul", "add"]
    assert graph.count("mul") == 1


@given(st.lists(st.sampled_from([1, 2, 16, "P", "S", "T", "4*T", "P*S"]), max_size=5))
def test_a_product_of_dims_has_one_spelling(dims: list[Dim]) -> None:
    bounds = {"P": 3, "S": 5, "T": 7}
    product = dim_product(*dims)
    assert product == dim_product(*reversed(dims))
    assert product == dim_product(product)
    assert dim_size(product, bounds) == math.prod(dim_size(dim, bounds) for dim in dims)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [((), 1), ((2, 3), 6), (("S", "P", 16), "16*P*S"), ((2, "2*T"), "4*T"), (("T", 1), "T"), (("T", 0), 0)],
)
def test_dim_product(dims: tuple[Dim, ...], expected: Dim) -> None:
    assert dim_product(*dims) == expected


def test_dims_are_read_in_their_one_spelling() -> None:
    assert parse_type("i32[2*S*P]").shape == ("2*P*S",)


def test_values_come_before_their_users_and_only_once() -> None:
    x = leaf("x", 4)
    shared = ops.apply("sigmoid", (x,), {})
    top = ops.apply("mul", (ops.apply("cos", (shared,), {}), shared), {})
    order = Graph("g", (("a", top), ("b", shared))).values()
    assert [value.op for value in order] == ["input", "sigmoid", "cos", "mul"]


def test_order_leaves_out_what_is_known() -> None:
    x = leaf("x", 4)
    shared = ops.apply("sigmoid", (x,), {})
    top = ops.apply("cos", (shared,), {})
    assert topological_order([top], known={shared}) == [top]
    assert topological_order([top], known={top}) == []


def test_users_lists_each_reader_once() -> None:
    x = leaf("x", 4)
    square = ops.apply("mul", (x, x), {})
    assert Graph("g", (("r", square),)).users() == {x: [square], square: []}


def test_map_keeps_sharing_and_untouched_values() -> None:
    x, y = leaf("x", 4), leaf("y", 4)
    shared = ops.apply("sigmoid", (x,), {})
    other = ops.apply("cos", (y,), {})
    graph = Graph("g", (("r", ops.apply("mul", (shared, shared), {})), ("s", other)))
    visited = []

    def visit(value: Value, original: Value) -> Value:
        visited.append(original)
        return ops.apply("sin", value.inputs, {}) if value.op == "sigmoid" else value

    mapped = graph.map(visit)
    assert visited == graph.values()
    first, second = mapped.result("r").inputs
    assert first is second
    assert first.op == "sin"
    assert mapped.result("s") is other


def test_map_shows_rebuilt_inputs_and_the_original() -> None:
    x = leaf("x", 4)
    graph = Graph("g", (("r", ops.apply("cos", (ops.apply("sigmoid", (x,), {}),), {})),))

    def visit(value: Value, original: Value) -> Value:
        if value.op == "cos":
            assert (value.inputs[0].op, original.inputs[0].op) == ("sin", "sigmoid")
        return ops.apply("sin", value.inputs, {}) if value.op == "sigmoid" else value

    graph.map(visit)


def test_a_deep_graph_needs_no_recursion() -> None:
    value = leaf("x", 4)
    for _ in range(20_000):
        value = ops.apply("sin", (value,), {})
    graph = Graph("g", (("r", value),))
    assert len(graph.values()) == 20_001
    assert graph.map(lambda value, _: value) == graph
    assert parse_graph(str(graph)) == graph
    assert not is_weight(value)


def test_a_weight_depends_on_params_and_constants_alone() -> None:
    weight = ops.leaf("param", "w", TensorType("f32", (4,)))
    scaled = ops.apply("mul", (weight, ops.const(2.0)), {})
    mixed = ops.apply("mul", (scaled, leaf("x", 4)), {})
    memo: dict[Value, bool] = {}
    assert [is_weight(value, memo) for value in (scaled, mixed, leaf("x", 4))] == [True, False, False]
    assert memo[weight]


def test_semantics_leave_out_where_the_result_lies() -> None:
    value = leaf("x", 4).replace(attrs={"name": "x", "arena": (64,)})
    assert value.semantics == {"name": "x"}


def test_leaves_print_their_name_and_others_their_number() -> None:
    x = leaf("x", 4)
    graph = Graph("g", (("r", ops.apply("sin", (x,), {})),))
    assert list(value_names(graph).values()) == ["x", "1"]
    assert str(graph) == "graph g {\n  %x: f32[4] = input()\n  %1: f32[4] = sin(%x)\n  return r=%1\n}"


def test_empty_lines_and_comments_are_skipped() -> None:
    text = "\n# a dump\ngraph g {\n  # of one line\n\n  %x: f32[] = input()\n  return r=%x\n}\n"
    assert parse_graph(text).values() == [leaf("x")]


VALID = "graph g {\n  %x: f32[4] = input()\n  %1: f32[4] = sin(%x)\n  return r=%1\n}"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (VALID, "", "a graph reads graph NAME"),
        ("graph g {", "graph g", "a graph reads graph NAME"),
        ("\n}", "", "a graph reads graph NAME"),
        ("return r=%1", "r=%1", "a graph reads graph NAME"),
        ("sin(%x)", "sin(%x", "a line reads %name: type = op(%inputs) {attrs}"),
        ("%1: f32[4]", "1: f32[4]", "a line reads %name"),
        ("%1: f32[4]", "%x: f32[4]", "%x is defined twice"),
        ("sin(%x)", "sin(%2)", "%2 is used before it is defined"),
        ("sin(%x)", "sin(x)", "the operand 'x' does not start with %"),
        ("sin(%x)", "sin(%x) {1: 2}", "attributes are no JSON object"),
        ("%1: f32[4]", "%1: f32[4]@", "a line reads %name"),
        ("%1: f32[4]", "%1: f-[4]x]", "'4]x' is no dim"),
        ("%1: f32[4]", "%1: f.32[4]", "a type reads dtype[dims]"),
        ("%1: f32[4]", "%1: f32[-4]", "'-4' is no dim"),
        ("%1: f32[4]", "%1: f32[²]", "'²' is no dim"),
        ("%1: f32[4]", "%1: f32[T*2]", "'T*2' is no dim"),
        ("r=%1", "r=1", "result 'r=1' names no value"),
        ("r=%1", "r=%7", "result 'r=%7' names no value"),
    ],
)
def test_each_syntax_error_says_what_is_wrong(before: str, after: str, message: str) -> None:
    assert before in VALID
    with pytest.raises(IrSyntaxError) as caught:
        parse_graph(VALID.replace(before, after, 1))
    assert message in str(caught.value)


def test_a_syntax_error_has_the_number_of_its_line() -> None:
    text = "# a remark\n\n" + VALID.replace("sin(%x)", "sin(x)")
    with pytest.raises(IrLineError) as caught:
        parse_graph(text)
    assert "sin(x)" in text.splitlines()[caught.value.number - 1]


@given(st.text(max_size=200))
def test_any_text_is_a_graph_or_a_syntax_error(text: str) -> None:
    parses_or_refuses(text)


@settings(max_examples=100)
@given(graphs(), st.data())
def test_a_changed_text_is_a_graph_or_a_syntax_error(graph: Graph, data: st.DataObject) -> None:
    text = str(graph)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 4)))
        text = text[:at] + data.draw(st.text('%[]{}(),= \n@*"19aT²', max_size=3)) + text[end:]
    parses_or_refuses(text)


def parses_or_refuses(text: str) -> None:
    try:
        graph = parse_graph(text)
    except IrSyntaxError:
        return
    assert parse_graph(text) == graph
