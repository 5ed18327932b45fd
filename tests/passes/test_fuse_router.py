from __future__ import annotations

import pytest

from dsv3c.compiler.core.ir import Graph
from dsv3c.passes.fuse_router import FuseRouter
from dsv3c.passes.simplify import Simplify
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph


def routing(
    scoring: str = "sigmoid", bias: bool = True, groups: str = "top2", norm: bool = True, scale: float = 2.5
) -> str:
    """Eight experts in four groups of two, as the model records them; groups: "top2", "max" or "" for none."""
    lines = [f"%logits: f32[T, 8] = input()\n%scores: f32[T, 8] = {scoring}(%logits)"]
    if bias:
        lines.append("%bias: f32[8] = param()\n%choice: f32[T, 8] = add(%scores, %bias)")
    choice = "%choice" if bias else "%scores"
    if groups:
        lines.append(f'%grouped: f32[T, 4, 2] = reshape({choice}) {{"shape": ["T", 4, 2]}}')
        lines.append(BEST_OF_GROUP[groups] + KEPT_GROUPS)
        choice = "%within"
    lines.append(f'%ids: i32[T, 3] = top_k({choice}) {{"k": 3}}\n%picked: f32[T, 3] = take_along(%scores, %ids)')
    if norm:
        lines.append(NORMALISED)
    lines.append(f'%scale: f32[] = const() {{"data": {scale}}}')
    lines.append(f"%weights: f32[T, 3] = mul({'%normal' if norm else '%picked'}, %scale)")
    return "\n".join([*lines, "return ids=%ids, weights=%weights"])


BEST_OF_GROUP = {
    "top2": """
%two: i32[T, 4, 2] = top_k(%grouped) {"k": 2}
%best2: f32[T, 4, 2] = take_along(%grouped, %two)
%best: f32[T, 4] = sum(%best2) {"axis": -1, "keepdims": false}""",
    "max": """
%best: f32[T, 4] = max(%grouped) {"axis": -1, "keepdims": false}""",
}
KEPT_GROUPS = """
%groups: i32[T, 2] = top_k(%best) {"k": 2}
%one: f32[] = const() {"data": 1.0}
%marks: f32[T, 4] = put_along(%groups, %one) {"size": 4}
%marked: f32[T, 4, 1] = reshape(%marks) {"shape": ["T", 4, 1]}
%kept: bool[T, 4, 1] = cast(%marked) {"dtype": "bool"}
%never: f32[] = const() {"data": -Infinity}
%only: f32[T, 4, 2] = where(%kept, %grouped, %never)
%within: f32[T, 8] = reshape(%only) {"shape": ["T", 8]}"""
NORMALISED = """
%total: f32[T, 1] = sum(%picked) {"axis": -1, "keepdims": true}
%tiny: f32[] = const() {"data": 1e-20}
%guarded: f32[T, 1] = add(%total, %tiny)
%normal: f32[T, 3] = div(%picked, %guarded)"""


def fused(text: str) -> Graph:
    before, _ = changed(Simplify(), graph(text))
    after, count = changed(FuseRouter(), before)
    assert count == 2
    assert [value.op for value in after.values() if value.op not in ("input", "param")] == ["router", "router_weights"]
    assert_same_meaning(before, after)
    return after


def test_routing_becomes_two_operations(golden: Golden) -> None:
    golden.check(str(fused(routing())))


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("groups", ["top2", "max", ""])
@pytest.mark.parametrize("norm", [True, False], ids=["norm", "as-is"])
@pytest.mark.parametrize("scale", [2.5, 1.0])
def test_each_kind_of_routing_is_fused(scoring: str, bias: bool, groups: str, norm: bool, scale: float) -> None:
    after = fused(routing(scoring, bias, groups, norm, scale))
    ids, weights = after.result("ids"), after.result("weights")
    assert len(ids.inputs) == 1 + bias
    assert ids.attrs == {
        "n_group": 4 if groups else 1,
        "topk_group": 2 if groups else 1,
        "top_k": 3,
        "scoring": scoring,
        "group_score": groups or "top2",
    }
    assert weights.attrs == {"scoring": scoring, "norm_topk_prob": norm, "scale": scale}


@pytest.mark.parametrize(
    ("old", "new", "applied"),
    [
        ('%never: f32[] = const() {"data": -Infinity}', '%never: f32[] = const() {"data": 0.0}', 0),
        ('%one: f32[] = const() {"data": 1.0}', '%one: f32[] = const() {"data": 0.0}', 0),
        ("%best2: f32[T, 4, 2] = take_along(%grouped, %two)", "%best2: f32[T, 4, 2] = take_along(%other, %two)", 0),
        ("= add(%scores, %bias)", "= mul(%scores, %bias)", 0),
        ("%bias: f32[8] = param()", "%bias: f32[T, 8] = input()", 0),
        ("%bias: f32[8] = param()", "%bias: f32[1, 8] = param()", 0),
        ('%tiny: f32[] = const() {"data": 1e-20}', '%tiny: f32[] = const() {"data": 0.5}', 2),
        ("= take_along(%scores, %ids)", "= take_along(%choice, %ids)", 1),
        ('%scale: f32[] = const() {"data": 2.5}', '%scale: f32[3] = const() {"data": [1.0, 2.0, 3.0]}', 2),
    ],
    ids=["zero-mask", "nothing-kept", "best-of-other", "bias-factor", "bias-a-token", "bias-of-rank-2", "large-eps",
         "biased-weights", "scale-a-place"],
)  # fmt: skip
def test_near_misses_keep_their_meaning(old: str, new: str, applied: int) -> None:
    text = routing().replace("%scores: ", "%other: f32[T, 4, 2] = input()\n%scores: ", 1)
    assert old in text
    before = graph(text.replace(old, new, 1))
    after, count = changed(FuseRouter(), before)
    assert count == applied
    assert_same_meaning(before, after)


def test_marks_along_the_experts_of_a_group_stay() -> None:
    """With as many groups as experts in a group the transposed marks broadcast as well."""
    text = routing().replace("f32[T, 8]", "f32[T, 16]").replace("f32[8]", "f32[16]").replace("[T, 4, 2]", "[T, 4, 4]")
    text = text.replace('["T", 4, 2]', '["T", 4, 4]').replace('["T", 8]', '["T", 16]')
    text = text.replace("%two: i32[T, 4, 4]", "%two: i32[T, 4, 2]").replace(
        "%best2: f32[T, 4, 4]", "%best2: f32[T, 4, 2]"
    )
    assert fused(text).result("ids").attrs["n_group"] == 4
    turned = text.replace("[T, 4, 1]", "[T, 1, 4]").replace('["T", 4, 1]', '["T", 1, 4]')
    before = graph(turned)
    assert changed(FuseRouter(), before) == (before, 0)


def test_a_refusal_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "2")
    FuseRouter().run(graph(routing().replace("%bias: f32[8] = param()", "%bias: f32[1, 8] = param()")))
    assert "<param bias: f32[1, 8]> is not one number an expert" in capsys.readouterr().err
