"""Tensors that are stored and that the model, as it is compiled, does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL, INDEXER
from dsv3c.compiler.checkpoint.infer import LAYER_NAME
from dsv3c.compiler.checkpoint.stored import StoredTensor

_EXPERT = re.compile(r"mlp\.experts\.([0-9]{1,6})\.(?:gate|up|down)_proj\.weight")
_POST_MLP_NORM = "post_mlp_layernorm.weight"
# What activations were rounded by where the checkpoint was made, as transformers and compressed-tensors name it.
_OF_ACTIVATIONS = re.compile(r".*\.(?:\w+_)?(?:activation_scale|(?:input|output)_(?:scale|zero_point))")


def without_unused(
    config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors that may be read, and a sentence for others that are known."""

    def chooses(name: str) -> bool:
        return config.indexer_type(int(name.split(".")[2])) == FULL

    parts = {name: match[2] for name in stored if (match := LAYER_NAME.fullmatch(name))}
    indexers = {
        name for name, part in parts.items() if part.startswith(INDEXER) and config.index_topk and not chooses(name)
    }
    norms = {name for name, part in parts.items() if config.post_mlp_norm and part == _POST_MLP_NORM}
    dense = {name for name in norms if not config.is_moe(int(name.split(".")[2]))}
    spare = {name for name, part in parts.items() if config.zero_expert_num and _is_zero_expert(config, part)}
    scales = {name for name in stored if _OF_ACTIVATIONS.fullmatch(name)}
    notes = []
    if indexers:
        why = f"no context is longer than the {config.index_topk} tokens of index_topk, up to which attention is dense"
        if config.indexer_types:
            why = "their layers take the choice of another"
        notes.append(f"the {len(indexers)} tensors of indexers are left out: {why}")
    if scales:
        notes.append(f"the {len(scales)} scales of activations are left out: what is rounded here follows each row")
    kept = {name: tensor for name, tensor in stored.items() if name not in indexers | dense | scales | spare}
    return kept, tuple(notes)


def _is_zero_expert(config: ModelConfig, part: str) -> bool:
    """Whether it is one of the matrices that transformers 5 has, and saves, for experts that multiply nothing."""
    expert = _EXPERT.fullmatch(part)
    return expert is not None and 0 <= int(expert[1]) - config.n_routed_experts < config.zero_expert_num
