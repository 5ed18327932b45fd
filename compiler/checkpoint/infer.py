"""What the shapes of the stored tensors say about a config.json that leaves sizes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsv3c.compiler.checkpoint.members import member_of

LAYER_NAME = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)
_EXPERT_NAME = re.compile(r"mlp\.experts\.[0-9]+\.(gate|up|down)_proj\.weight")


def infer_missing(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`values` of a config.json completed from `shapes` (of stored tensors by name), and a sentence for each addition.

    Only what is absent is added; null stands for a value where it has a meaning, as in q_lora_rank.
    """
    known = dict(values)
    notes: list[str] = []
    evidence = _Evidence(shapes, known)
    for key, rule in _RULES.items():
        nullable = key in ("q_lora_rank", "n_routed_experts")
        if key in known and (nullable or known[key] is not None):
            continue
        found = rule(evidence)
        if found is None:
            continue
        known[key] = None if found == "null" else found
        notes.append(f"config.json has no {key}; the tensors say {found}")
    return known, tuple(notes)


@dataclass(frozen=True)
class _Evidence:
    shapes: Mapping[str, tuple[int, ...]]
    known: dict[str, Any]

    def extent(self, suffix: str, axis: int, rank: int = 2) -> int | None:
        """One extent of the first tensor of any layer, or of none, whose name ends in `suffix`."""
        for name, shape in self.shapes.items():
            if name.endswith(suffix) and len(shape) == rank:
                return shape[axis]
        return None

    def layers_with(self, suffix: str) -> list[int]:
        matches = (LAYER_NAME.fullmatch(name) for name in self.shapes)
        return sorted({int(match[1]) for match in matches if match and match[2] == suffix})

    def size(self, key: str) -> int | None:
        """The value of a key if it can be divided by."""
        value = self.known.get(key)
        return value if type(value) is int and value > 0 else None

    def per_head(self, total: int | None) -> int | None:
        heads = self.size("num_attention_heads")
        return total // heads if total is not None and heads and total % heads == 0 else None


def _less(total: int | None, part: int | None) -> int | None:
    return total - part if total is not None and part is not None else None


def _kv_lora_rank(evidence: _Evidence) -> int | None:
    return evidence.extent(".self_attn.kv_a_layernorm.weight", 0, rank=1)


def _q_lora_rank(evidence: _Evidence) -> int | str | None:
    if evidence.layers_with("self_attn.q_proj.weight"):
        return "null"
    return evidence.extent(".self_attn.q_a_proj.weight", 0)


def _qk_rope_head_dim(evidence: _Evidence) -> int | None:
    return _less(evidence.extent(".self_attn.kv_a_proj_with_mqa.weight", 0), evidence.size("kv_lora_rank"))


def _v_head_dim(evidence: _Evidence) -> int | None:
    return evidence.per_head(evidence.extent(".self_attn.o_proj.weight", 1))


def _qk_nope_head_dim(evidence: _Evidence) -> int | None:
    return _less(evidence.per_head(evidence.extent(".self_attn.kv_b_proj.weight", 0)), evidence.size("v_head_dim"))


def _n_routed_experts(evidence: _Evidence) -> int | str | None:
    if not evidence.shapes or member_of(evidence.known).dense:
        return None
    return evidence.extent(".mlp.gate.weight", 0) or "null"


def _moe_intermediate_size(evidence: _Evidence) -> int | None:
    for name, shape in evidence.shapes.items():
        match = LAYER_NAME.fullmatch(name)
        if match and _EXPERT_NAME.fullmatch(match[2]) and len(shape) == 2:
            return shape[1 if match[2].endswith("down_proj.weight") else 0]
    return evidence.extent(".mlp.experts.down_proj", 2, rank=3)


def _n_shared_experts(evidence: _Evidence) -> int | None:
    inner = evidence.size("moe_intermediate_size")
    if not inner or member_of(evidence.known).paired:
        return None
    total = evidence.extent(".mlp.shared_experts.gate_proj.weight", 0)
    if total is None:
        return 0
    return total // inner if total % inner == 0 else None


def _first_k_dense_replace(evidence: _Evidence) -> int | None:
    layers = evidence.layers_with("mlp.gate.weight")
    told = evidence.known.get("mlp_layer_types") is not None or member_of(evidence.known).paired
    return layers[0] if layers and not told else None


def _num_nextn_predict_layers(evidence: _Evidence) -> int | None:
    return len(evidence.layers_with("eh_proj.weight")) or None


# In an order in which each rule finds what it needs.
_RULES: dict[str, Callable[[_Evidence], int | str | None]] = {
    "vocab_size": lambda evidence: evidence.extent("model.embed_tokens.weight", 0),
    "hidden_size": lambda evidence: evidence.extent("model.embed_tokens.weight", 1),
    "intermediate_size": lambda evidence: evidence.extent(".mlp.gate_proj.weight", 0),
    "kv_lora_rank": _kv_lora_rank,
    "q_lora_rank": _q_lora_rank,
    "qk_rope_head_dim": _qk_rope_head_dim,
    "v_head_dim": _v_head_dim,
    "qk_nope_head_dim": _qk_nope_head_dim,
    "n_routed_experts": _n_routed_experts,
    "moe_intermediate_size": _moe_intermediate_size,
    "n_shared_experts": _n_shared_experts,
    "first_k_dense_replace": _first_k_dense_replace,
    "num_nextn_predict_layers": _num_nextn_predict_layers,
}
