"""Every tensor of a checkpoint belongs to one named part."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.parts import PARTS, part_of

LAYERS = 4


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norms"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "attention"),
        ("model.layers.0.self_attn.o_proj.weight_scale_inv", "attention"),
        ("model.layers.0.mlp.gate_proj.weight", "dense mlp"),
        ("model.layers.3.mlp.gate.weight", "router"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "router"),
        ("model.layers.3.mlp.experts.15.up_proj.weight", "routed experts"),
        ("model.layers.3.mlp.experts.*.up_proj.weight", "routed experts"),
        ("model.layers.3.mlp.experts.gate_up_proj", "routed experts"),
        ("model.layers.3.mlp.shared_experts.up_proj.weight", "shared experts"),
        ("model.layers.4.mlp.shared_experts.up_proj.weight", "mtp"),
        ("model.layers.4.embed_tokens.weight", "mtp"),
        ("model.layers.4.shared_head.norm.weight", "mtp"),
    ],
)
def test_part_of_a_name(name: str, part: str) -> None:
    assert part_of(name, LAYERS) == part


def test_the_bundled_model_has_every_part(bundled_model: Path) -> None:
    assert {part_of(name, LAYERS) for name in Checkpoint.open(bundled_model).shapes} == set(PARTS)
