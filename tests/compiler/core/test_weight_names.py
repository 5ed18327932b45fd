from __future__ import annotations

import pytest

from dsv3c.compiler.core.weight_names import name_of

LAYER = "model.layers.3."


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (["model.embed_tokens.weight"], "embedding"),
        (["lm_head.weight"], "head"),
        ([LAYER + "self_attn.o_proj.weight"], "layers.3.attention.o_proj"),
        (
            [LAYER + "self_attn.q_a_proj.weight", LAYER + "self_attn.kv_a_proj_with_mqa.weight"],
            "layers.3.attention.q_a_kv_a",
        ),
        ([LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"], "layers.3.mlp.gate_up"),
        (
            [
                f"{LAYER}mlp.{place}.{role}.weight"
                for role in ("gate_proj", "up_proj")
                for place in ("experts.*", "shared_experts")
            ],
            "layers.3.experts.gate_up",
        ),
        ([LAYER + "mlp.shared_experts.down_proj.weight"], "layers.3.shared_experts.down_proj"),
        (
            [LAYER + "mlp.shared_experts.down_proj.weight", LAYER + "mlp.experts.*.down_proj.weight"],
            "layers.3.experts.down_proj",
        ),
        ([LAYER + "eh_proj.weight"], "layers.3.eh_proj"),
        ([LAYER + "shared_head.head.weight"], "layers.3.shared_head.head"),
    ],
)
def test_a_weight_is_called_by_its_layer_its_part_and_its_role(tensors: list[str], name: str) -> None:
    assert name_of(tensors) == name
