from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import Graph
from dsv3c.passes.pack import Pack
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

SHARED_INPUT = """
  %x: f32[T, 40] = input()
  %a: f32[5, 40] = param()
  %2: int4-g32[5, 40] = quantize(%a) {"format": "int4-g32"}
  %3: f32[T, 5] = linear(%x, %2)
  %b: f32[6, 40] = param()
  %5: int4-g32[6, 40] = quantize(%b) {"format": "int4-g32"}
  %6: f32[T, 6] = linear(%x, %5)
  %router: f32[4, 40] = param()
  %8: f32[4, 40] = quantize(%router) {"format": "float32"}
  %9: f32[T, 4] = linear(%x, %8)
  return a=%3, b=%6, router=%9
"""


def packed(text: str, integer: bool = True) -> Graph:
    before = graph(text)
    after, count = changed(Pack("rows16", integer), before)
    assert count == sum(value.op in ("linear", "mla_materialized") for value in before.values())
    return after


def test_weights_are_packed_and_readers_share_a_quantised_activation(golden: Golden) -> None:
    after = packed(SHARED_INPUT)
    assert after.count("quantize_rows") == 1
    golden.check(str(after))


def test_a_target_without_integer_products_gets_float_activations() -> None:
    after = packed(SHARED_INPUT, integer=False)
    assert after.count("quantize_rows") == 0
    assert after.count("pack") == 3
    assert_same_meaning(graph(SHARED_INPUT), after)


def test_rounding_activations_changes_the_result_little() -> None:
    assert_same_meaning(graph(SHARED_INPUT), packed(SHARED_INPUT), rtol=0, atol=0.3)


@pytest.mark.parametrize(("format", "group"), [("int8", 64), ("int8-g128", 128), ("int4-g32-asym", 32)])
def test_activations_are_grouped_as_their_weight(format: str, group: int) -> None:
    text = SHARED_INPUT.replace("int4-g32", format)
    rows = [value for value in packed(text).values() if value.op == "quantize_rows"]
    assert [value.attrs for value in rows] == [{"group": group}]


@pytest.mark.parametrize("format", ["bfloat16", "float16"])
def test_float_weights_meet_float_activations(format: str) -> None:
    dtype = {"bfloat16": "bf16", "float16": "f16"}[format]
    text = SHARED_INPUT.replace('"int4-g32"', f'"{format}"').replace("int4-g32[", f"{dtype}[")
    after = packed(text)
    assert after.count("quantize_rows") == 0
    assert_same_meaning(graph(text), after)


def attention(format: str) -> str:
    return f"""
  %q: f32[T, 2, 8] = input()
  %q_pe: f32[T, 2, 4] = input()
  %cache: f32[N, 12] = input()
  %uk: f32[2, 8, 8] = param()
  %4: {format}[2, 8, 8] = quantize(%uk) {{"format": "{format}"}}
  %uv: f32[2, 6, 8] = param()
  %6: {format}[2, 6, 8] = quantize(%uv) {{"format": "{format}"}}
  %at: i32[T] = input()
  %of: i32[T] = input()
  %pages: i32[S, P] = input()
  %o: f32[T, 2, 6] = mla_materialized(%q, %q_pe, %cache, %4, %6, %at, %of, %pages) {{"scale": 1, "page_size": 4}}
  return o=%o
"""


def latent_group(after: Graph) -> object:
    return after.result("o").attrs.get("group", 0)


def test_materialized_attention_takes_packed_weights_and_float_queries() -> None:
    text = attention("int8")
    after = packed(text, integer=False)
    assert after.count("pack") == 2
    assert after.count("quantize_rows") == 0
    assert latent_group(after) == 0
    assert_same_meaning(graph(text), after)


@pytest.mark.parametrize(("format", "group"), [("int8", 64), ("int4-g32", 32), ("nf4-g16", 16)])
def test_materialized_attention_rounds_latents_where_activations_are(format: str, group: int) -> None:
    text = attention(format)
    after = packed(text)
    assert latent_group(after) == group
    assert after.count("quantize_rows") == 0
    assert_same_meaning(graph(text), after, rtol=0, atol=0.1)


def test_floats_stand_for_latents_that_meet_no_integers() -> None:
    assert latent_group(packed(attention("fp8"))) == 0


def test_an_embedding_stays_in_rows() -> None:
    before = graph(
        """
  %embed: f32[7, 32] = param()
  %1: bf16[7, 32] = quantize(%embed) {"format": "bfloat16"}
  %tokens: i32[T] = input()
  %3: f32[T, 32] = take(%1, %tokens)
  return x=%3
"""
    )
    assert changed(Pack("rows16", True), before) == (before, 0)
