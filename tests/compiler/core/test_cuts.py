"""Where an entry can be cut: before each layer, and only if the residual stream is all that crosses."""

from __future__ import annotations

from dsv3c.compiler.core.cuts import GraphCut, cuts
from dsv3c.compiler.core.ir import Graph, Value, is_weight, parse_graph

HEAD = """graph decode {
  %tokens: i32[T] = input()
  %positions: i32[T] = input()
  %sequence: i32[T] = input()
  %page_table: i32[S, P] = input()
  %frequencies: f32[1] = param()
  %table: f32[T, 2] = rope_table(%positions, %frequencies) {"scale": 1.0}
  %norm: f32[2] = param()
  %embedding: f32[8, 4] = param()
  %2: f32[T, 4] = take(%embedding, %tokens)
"""
# What a layer is called says nothing: its row of the cache tells where it begins.
LAYER = """  %block.{i}.scale: f32[4] = param()
  %{n}0: f32[T, 4] = rms_norm(%{x}, %block.{i}.scale) {{"eps": 1e-06}}
  %block.{i}.down: f32[4, 4] = param()
  %{n}3: f32[T, 4] = linear(%{n}0, %block.{i}.down)
  %cache.{i}: f32[N, 4] = input()
  %{n}4: f32[N, 4] = mla_write(%cache.{i}, %{n}3, %norm, %table, %positions, %sequence, %page_table)"""
LAYER += """ {{"eps": 1e-06, "interleave": false, "page_size": 2}}
  %{n}1: f32[T, 4] = mul(%{n}0, %{side})
  %{n}2: f32[T, 4] = add(%{x}, %{n}1)
"""


def graph(first_side: str, second_side: str) -> Graph:
    """Two layers, each of which multiplies by another value."""
    layers = LAYER.format(i=0, n=1, x="2", side=first_side) + LAYER.format(i=1, n=2, x="12", side=second_side)
    angles = "  %mixed: f32[T, 4] = input()\n  %9: f32[T, 4] = cos(%mixed)\n"
    return parse_graph(HEAD + angles + layers + "return cache.0=%14, cache.1=%24, logits=%22\n}\n")


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
    assert first == GraphCut(first.residual, names["take"][-1] + 1, ())
    assert list(second.kept) == names["rope_table"]  # both layers rotate by the same angles, which no layer makes


def test_what_depends_on_no_layer_is_kept_for_those_above() -> None:
    made = graph("9", "9")
    calls = calls_of(made)
    kept = [number for value, numbers in calls.items() if value.op in ("cos", "rope_table") for number in numbers]
    _, second = cuts(made, calls)
    assert sorted(second.kept) == sorted(kept)


def test_a_connection_around_a_layer_leaves_no_cut() -> None:
    made = graph("9", "11")
    assert cuts(made, calls_of(made)) == []
