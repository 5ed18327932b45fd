"""Which layers choose the positions that attention goes over, and how: the keys of config.json that begin with index.

Sources: configuration_deepseek_v32.py and configuration_glm_moe_dsa.py of transformers; GLM's layers that take the
choice of one before them: arXiv 2603.12201.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.rope import MAX_POSITIONS

FULL, SHARED, NONE = "full", "shared", "none"
INDEXER = "self_attn.indexer."  # what names of its tensors begin with in a layer
_LETTERS = {"F": FULL, "S": SHARED}
_MAX_HEADS, _MAX_WIDTH, _MAX_FREQUENCY = 2**12, 2**12, 2**12


def parse_indexer(
    config: ConfigFields, layers: int, mtp_layers: int, rope_dim: int, max_positions: int
) -> dict[str, Any]:
    """The fields of ModelConfig about it. No layer chooses where no context is longer than what is chosen of it."""
    topk = config.integer("index_topk", 1, MAX_POSITIONS) if config.has("index_topk") else 0
    if not 0 < topk < max_positions:
        return {"index_topk": topk}
    if config.values.get("q_lora_rank") is None:
        raise config.unsupported("q_lora_rank", "an indexer reads the latent of queries")
    width = config.integer("index_head_dim", 1, _MAX_WIDTH)
    if width < rope_dim:
        raise config.wrong("index_head_dim", f"at least qk_rope_head_dim, {rope_dim}")
    behind = FULL if config.boolean("mtp_indexer", True) else NONE
    return {
        "index_topk": topk,
        "index_n_heads": config.integer("index_n_heads", 1, _MAX_HEADS),
        "index_head_dim": width,
        "index_interleave": config.boolean("indexer_rope_interleave", False),
        "indexer_types": _types(config, layers) + (behind,) * mtp_layers,
    }


def has_indexer(layer: Any, shapes: Mapping[str, Any]) -> bool:
    """Whether a layer of the stored tensors has one."""
    return any(name.startswith(f"model.layers.{layer}.{INDEXER}") for name in shapes)


def _types(config: ConfigFields, layers: int) -> tuple[str, ...]:
    key = next((key for key in ("indexer_types", "index_topk_pattern") if config.has(key)), None)
    if key is None:
        every = max(config.integer("index_topk_freq", 0, _MAX_FREQUENCY, 1), 1)
        least = 1 if every > 1 else 0  # else nothing is chosen before the first layer, which would share it
        offset = config.integer("index_skip_topk_offset", least, layers + _MAX_FREQUENCY, 2)
        return tuple(SHARED if max(i - offset + 1, 0) % every else FULL for i in range(layers))
    given = config.values[key]
    types = [_LETTERS.get(letter) for letter in given] if isinstance(given, str) else given
    if not isinstance(types, list) or len(types) != layers or not all(kind in (FULL, SHARED) for kind in types):
        raise config.wrong(key, f"{layers} times full or shared")
    if types[0] == SHARED:
        raise config.wrong(key, "full for the first layer, before which nothing is chosen")
    return tuple(types)
