"""The parts of a model that sizes are told by."""

from __future__ import annotations

from dsv3c.compiler.checkpoint.expected import EMBEDDING, HEAD
from dsv3c.compiler.checkpoint.infer import LAYER_NAME

PARTS = ("embedding", "attention", "dense mlp", "router", "routed experts", "shared experts", "head", "norms", "mtp")


def part_of(name: str, num_hidden_layers: int) -> str:
    """The part that a tensor of a checkpoint belongs to, by its stored or logical name.

    All of a multi-token prediction layer is "mtp": it is there for speed, and a model runs without it.
    """
    if name == EMBEDDING:
        return "embedding"
    if name.startswith(HEAD):
        return "head"
    layer = LAYER_NAME.fullmatch(name)
    if layer and int(layer[1]) >= num_hidden_layers:
        return "mtp"
    if "norm" in name:
        return "norms"
    if ".self_attn." in name:
        return "attention"
    if ".mlp.gate." in name:
        return "router"
    if ".mlp.experts." in name:
        return "routed experts"
    return "shared experts" if ".mlp.shared_experts." in name else "dense mlp"
