"""Where an entry can be cut: before each layer, and only if the residual stream is all that crosses."""

from __future__ import annotations

from dsv3c.compiler.core.cuts import Cut, cuts
from dsv3c.compiler.core.ir import Graph, Value, is_weight, parse_graph

HEAD = """graph decode {
  %tokens: i32[T] = input()
  %embedding: f32[8, 4] = param()
  %2: f32[T, 4] = take(%embedding, %tokens)
"""
LAYER = """  %model.layers.{i}.input_layernorm.weight: f32[4] = param()
  %{n}0: f32[T, 4] = rms_norm(%{x}, %model.layers.{i}.input_layernorm.weight) {{"eps": 1e-06}}
  %{n}1: f32[T, 4] = mul(%{n}0, %{side})
  %{n}2: f32[T, 4] = add(%{x}, %{n}1)
"""


def graph(first_side: str, second_side: str) -> Graph:
    """Two layers, each of which multiplies by another value."""
    layers = LAYER.format(i=0, n=1, x="2", side=first_side) + LAYER.format(i=1, n=2, x="12", side=second_side)
    angles = "  %positions: f32[T, 4] = input()\n  %angles: f32[T, 4] = cos(%positions)\n".replace("%angles", "%9")
    return parse_graph(HEAD + angles + layers + "return logits=%22\n}\n")


def calls_of(graph: Graph) -> dict[Value, list[int]]:
    """Two calls for each value that is computed."""
    computed = [value for value in graph.values() if not is_weight(value) and value.op != "input"]
    return {value: [2 * number, 2 * number + 1] for number, value in enumerate(computed)}


def test_a_cut_before_each_layer() -> None:
    made = graph("10", "20")
    calls = calls_of(made)
    names = {value.op: numbers for value, numbers in calls.items()}
    first, second = cuts(made, calls)
    assert (first.residual.op, second.residual.op) == ("take", "add")
    assert first == Cut(first.residual, names["take"][-1] + 1, ())
    assert second.kept == ()


def test_what_depends_on_no_layer_is_kept_for_those_above() -> None:
    made = graph("9", "9")
    calls = calls_of(made)
    (angles,) = (numbers for value, numbers in calls.items() if value.op == "cos")
    _, second = cuts(made, calls)
    assert list(second.kept) == angles


def test_a_connection_around_a_layer_leaves_no_cut() -> None:
    made = graph("9", "11")
    assert cuts(made, calls_of(made)) == []
