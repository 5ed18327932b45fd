from __future__ import annotations

import numpy as np

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.passes.quantise import Quantise
from tests.conftest import Golden
from tests.passes.evaluation import assert_same_meaning, changed, graph, leaves, results

MODEL = """
  %embed: f32[7, 32] = param()
  %tokens: i32[T] = input()
  %x: f32[T, 32] = take(%embed, %tokens)
  %w: f32[32, 32] = param()
  %y: f32[T, 32] = linear(%x, %w)
  %wr: f32[8, 32] = param()
  %logits: f32[T, 8] = linear(%y, %wr)
  %ids: i32[T, 2] = router(%logits) {"n_group":1, "topk_group":1, "top_k":2, "scoring":"softmax", "group_score":"max"}
  %weights: f32[T, 2] = router_weights(%logits, %ids) {"scoring": "softmax", "norm_topk_prob": false, "scale": 1.0}
  %order: i32[T, 20] = expert_order(%ids) {"n_experts": 8, "n_shared": 0}
  %w.*: f32[8, 2, 4, 32] = param()
  %h: f32[2*T, 4] = moe_gate_up(%y, %order, %w.*)
  %down.*: f32[8, 32, 4] = param()
  %z: f32[T, 32] = moe_down(%h, %order, %weights, %down.*)
  %heads: f32[T, 2, 16] = reshape(%z) {"shape": ["T", 2, 16]}
  %wh: f32[2, 16, 16] = param()
  %o: f32[T, 2, 16] = head_linear(%heads, %wh)
  %flat: f32[T, 32] = reshape(%o) {"shape": ["T", 32]}
  %rows: i32[R] = input()
  %last: f32[R, 32] = take(%flat, %rows)
  %head: f32[7, 32] = param()
  %out: f32[R, 7] = linear(%last, %head)
  return logits=%out, hidden=%flat
"""


def formats(graph: Graph) -> dict[str, str]:
    """Format of each param that is quantised."""
    quantised: list[Value] = [value for value in graph.values() if value.op == "quantize"]
    return {str(value.inputs[0].attrs["name"]): str(value.attrs["format"]) for value in quantised}


def test_each_weight_gets_its_format(golden: Golden) -> None:
    after, count = changed(Quantise("int4-g32", "int8", "bfloat16"), graph(MODEL))
    assert count == 7
    assert formats(after) == {
        "embed": "bfloat16",
        "w": "int4-g32",
        "wr": "float32",
        "w.*": "int4-g32",
        "down.*": "int4-g32",
        "wh": "int4-g32",
        "head": "int8",
    }
    golden.check(str(after))


def test_float32_keeps_the_meaning() -> None:
    after, _ = changed(Quantise("float32", "float32", "float32"), graph(MODEL))
    assert_same_meaning(graph(MODEL), after)


def test_eight_bits_stay_close() -> None:
    before = graph(
        """
  %embed: f32[7, 32] = param()
  %tokens: i32[T] = input()
  %x: f32[T, 32] = take(%embed, %tokens)
  %w: f32[16, 32] = param()
  %y: f32[T, 16] = linear(%x, %w)
  return y=%y
"""
    )
    after, _ = changed(Quantise("int8", "int8", "bfloat16"), before)
    given = leaves(before)
    expected, found = results(before, given)["y"], results(after, given)["y"]
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.01


def test_both_weights_of_materialized_attention_are_quantised() -> None:
    before = graph(
        """
  %q: f32[T, 2, 8] = input()
  %q_pe: f32[T, 2, 4] = input()
  %cache: f32[N, 12] = input()
  %uk: f32[2, 8, 8] = param()
  %uv: f32[2, 6, 8] = param()
  %at: i32[T] = input()
  %of: i32[T] = input()
  %pages: i32[S, P] = input()
  %o: f32[T, 2, 6] = mla_materialized(%q, %q_pe, %cache, %uk, %uv, %at, %of, %pages) {"scale": 1, "page_size": 4}
  return o=%o
"""
    )
    after, count = changed(Quantise("int8", "int8", "int8"), before)
    assert count == 1
    assert formats(after) == {"uk": "int8", "uv": "int8"}


def test_a_tied_embedding_has_both_formats() -> None:
    text = MODEL.replace("%head: f32[7, 32] = param()\n", "").replace("%head)", "%embed)")
    after, _ = changed(Quantise("int4-g32", "int8", "bfloat16"), graph(text))
    stored = [value.attrs["format"] for value in after.values() if value.op == "quantize"]
    assert {"bfloat16", "int8"} <= set(stored)
    assert sum(value.op == "param" and value.attrs["name"] == "embed" for value in after.values()) == 1


def test_gathers_from_activations_stay() -> None:
    after, _ = changed(Quantise("int8", "int8", "int8"), graph(MODEL))
    (gather,) = [
        value for value in after.values() if value.op == "take" and value.inputs[1].attrs.get("name") == "rows"
    ]
    assert gather.inputs[0].op == "reshape"


def test_norms_and_biases_stay() -> None:
    before = graph(
        """
  %x: f32[T, 4] = input()
  %w: f32[4] = param()
  %1: f32[T, 4] = rms_norm(%x, %w) {"eps": 0.001}
  return r=%1
"""
    )
    assert changed(Quantise("int8", "int8", "int8"), before) == (before, 0)
