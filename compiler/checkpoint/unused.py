"""Tensors that are stored and that the model, as it is compiled, does not read."""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL, INDEXER
from dsv3c.compiler.checkpoint.infer import LAYER_NAME
from dsv3c.compiler.checkpoint.stored import StoredTensor

_POST_MLP_NORM = "post_mlp_layernorm.weight"


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
    why = f"no context is longer than the {config.index_topk} tokens of index_topk, up to which attention is dense"
    if config.indexer_types:
        why = "their layers take the choice of another"
    notes = (f"the {len(indexers)} tensors of indexers are left out: {why}",)
    kept = {name: tensor for name, tensor in stored.items() if name not in indexers | dense}
    return kept, notes if indexers else ()
