from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import Graph, parse_type
from dsv3c.passes.fuse_moe import FuseMoe
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph

ROUTED = """
  %x: f32[T, 8] = input()
  %logits: f32[T, 4] = input()
  %ids: i32[T, 2] = top_k(%logits) {"k": 2}
  %weights: f32[T, 2] = take_along(%logits, %ids)
  %gate.*: f32[4, 3, 8] = param()
  %g: f32[4, T, 3] = linear(%x, %gate.*)
  %s: f32[4, T, 3] = sigmoid(%g)
  %silu: f32[4, T, 3] = mul(%g, %s)
  %up.*: f32[4, 3, 8] = param()
  %u: f32[4, T, 3] = linear(%x, %up.*)
  %h: f32[4, T, 3] = mul(%silu, %u)
  %down.*: f32[4, 8, 3] = param()
  %out: f32[4, T, 8] = linear(%h, %down.*)
  %dense: f32[T, 4] = put_along(%ids, %weights) {"size": 4}
  %turned: f32[4, T] = transpose(%dense) {"axes": [1, 0]}
  %mix: f32[4, T, 1] = reshape(%turned) {"shape": [4, "T", 1]}
  %mixed: f32[4, T, 8] = mul(%out, %mix)
  %routed: f32[T, 8] = sum(%mixed) {"axis": 0, "keepdims": false}
"""
SHARED = """
  %wg: f32[6, 8] = param()
  %sg: f32[T, 6] = linear(%x, %wg)
  %ss: f32[T, 6] = sigmoid(%sg)
  %ssilu: f32[T, 6] = mul(%sg, %ss)
  %wu: f32[6, 8] = param()
  %su: f32[T, 6] = linear(%x, %wu)
  %sh: f32[T, 6] = mul(%ssilu, %su)
  %wd: f32[8, 6] = param()
  %shared: f32[T, 8] = linear(%sh, %wd)
  %both: f32[T, 8] = add(%routed, %shared)
"""
ALONE = ROUTED + "return r=%routed"
WITH_SHARED = ROUTED + SHARED + "return r=%both"


def fused(text: str) -> Graph:
    before = graph(text)
    after, count = changed(FuseMoe(), before)
    assert count == 1
    assert_same_meaning(before, after)
    return after


@pytest.mark.parametrize("text", [ALONE, WITH_SHARED], ids=["routed", "with-shared"])
def test_the_dense_mixture_becomes_two_products_over_pairs(text: str, golden: Golden) -> None:
    golden.check(str(fused(text)))


def test_a_wide_shared_mlp_is_several_experts() -> None:
    after = fused(WITH_SHARED)
    down = after.result("r")
    order = down.inputs[1]
    assert order.attrs == {"n_experts": 4, "n_shared": 2}
    assert down.inputs[3].type == parse_type("f32[6, 8, 3]")
    assert after.count("sigmoid") == after.count("linear") == 0


def test_the_order_of_the_sum_does_not_matter() -> None:
    turned = WITH_SHARED.replace("add(%routed, %shared)", "add(%shared, %routed)")
    assert fused(turned) == fused(WITH_SHARED)


def test_a_shared_mlp_of_another_width_stays_dense() -> None:
    text = WITH_SHARED.replace("[6, 8]", "[5, 8]").replace("[8, 6]", "[8, 5]").replace("[T, 6]", "[T, 5]")
    after = fused(text)
    assert after.count("moe_down") == 1
    assert after.count("linear") == 3


def test_a_shared_mlp_of_another_input_stays_dense() -> None:
    text = WITH_SHARED.replace("%wg:", "%y: f32[T, 8] = input()\n%wg:").replace("linear(%x, %w", "linear(%y, %w")
    assert fused(text).count("linear") == 3


BEYOND = (
    ALONE.replace("%logits: f32[T, 4]", "%logits: f32[T, 6]")
    .replace('f32[T, 4] = put_along(%ids, %weights) {"size": 4}', 'f32[T, 6] = put_along(%ids, %weights) {"size": 6}')
    .replace(
        "%turned: f32[4, T] = transpose(%dense)",
        '%held: f32[T, 4] = slice(%dense) {"axis": -1, "start": 0, "stop": 4}\n%turned: f32[4, T] = transpose(%held)',
    )
    .replace(
        "return r=%routed",
        """%rest: f32[T, 2] = slice(%dense) {"axis": -1, "start": 4, "stop": 6}
  %share: f32[T, 1] = sum(%rest) {"axis": -1, "keepdims": true}
  %same: f32[T, 8] = mul(%x, %share)
  %all: f32[T, 8] = add(%routed, %same)
  return r=%all""",
    )
)


def test_ids_behind_the_experts_give_x_back(golden: Golden) -> None:
    before = graph(BEYOND)
    after, count = changed(FuseMoe(), before)
    assert count == 2
    assert_same_meaning(before, after)
    golden.check(str(after))


def test_a_part_of_the_ids_behind_the_experts_stays_as_it_is() -> None:
    text = BEYOND.replace(
        'slice(%dense) {"axis": -1, "start": 4, "stop": 6}', 'slice(%dense) {"axis": -1, "start": 4, "stop": 5}'
    )
    after, count = changed(FuseMoe(), graph(text.replace("%rest: f32[T, 2]", "%rest: f32[T, 1]")))
    assert (count, after.count("identity_experts")) == (1, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('%ids: i32[T, 2] = top_k(%logits) {"k": 2}', "%ids: i32[T, 2] = input()"),
        ("%weights: f32[T, 2] = take_along(%logits, %ids)", "%weights: f32[T, 1] = input()"),
        ("%s: f32[4, T, 3] = sigmoid(%g)", "%s: f32[4, T, 3] = cos(%g)"),
        ("%up.*: f32[4, 3, 8] = param()\n  %u: f32[4, T, 3]", "%up.*: f32[4, 1, 8] = param()\n  %u: f32[4, T, 1]"),
        ('sum(%mixed) {"axis": 0, "keepdims": false}', 'max(%mixed) {"axis": 0, "keepdims": false}'),
    ],
    ids=["ids-may-repeat", "one-weight", "no-silu", "narrow-up", "max"],
)
def test_near_misses_stay(old: str, new: str) -> None:
    assert old in ALONE
    before = graph(ALONE.replace(old, new, 1))
    assert changed(FuseMoe(), before) == (before, 0)


def test_mixing_weights_along_the_hidden_size_stay() -> None:
    text = ALONE.replace("T", "8").replace('"8"', "8").replace("[4, 8, 1]", "[4, 1, 8]")
    before = graph(text)
    assert changed(FuseMoe(), before) == (before, 0)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    FuseMoe().run(graph(ALONE.replace('%ids: i32[T, 2] = top_k(%logits) {"k": 2}', "%ids: i32[T, 2] = input()")))
    assert (
        "fuse-moe: Moe: no match; nearest: <input ids: i32[T, 2]> may name an expert twice" in capsys.readouterr().err
    )
