"""What people call a weight: its layer, its part of the layer, and its role, told from the tensors it is made of.

    layers.3.attention.q_a_kv_a    model.layers.3.self_attn.q_a_proj.weight and ….kv_a_proj_with_mqa.weight, joined
    layers.3.attention.kv_b_proj   whatever is made of that tensor alone: both of its halves, transposed or not
    layers.3.experts.gate_up       the gates and ups of all experts, shared ones among them
    embedding, head

Names serve to look up what a person chose for a weight; nothing is matched by them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsv3c.compiler.core.ir import Value, topological_order

EMBEDDING, HEAD = "embedding", "head"
_WHOLE = {"embed_tokens": EMBEDDING, "lm_head": HEAD}
_PLACES = (("self_attn", "attention"), ("mlp.experts.*", "experts"), ("mlp.shared_experts", "shared_experts"))
_SUFFIX = re.compile(r"_proj(_with_mqa)?$")


def tensors_of(weight: Value) -> tuple[str, ...]:
    """The names of the checkpoint's tensors that a weight is made of, each once."""
    leaves = (leaf for leaf in topological_order([weight]) if leaf.op == "param")
    return tuple(dict.fromkeys(str(leaf.attrs["name"]) for leaf in leaves))


def weight_name(weight: Value) -> str:
    """The name of a weight, which it shares with all that are made of the same tensors."""
    return name_of(tensors_of(weight))


def name_of(tensors: Sequence[str]) -> str:
    """The name of a weight that is made of these tensors of the checkpoint, in their order."""
    paths = [_path(tensor).rpartition(".") for tensor in tensors]
    places = sorted({place for place, _, _ in paths}, key=lambda place: ("shared_experts" in place, place))
    roles = list(dict.fromkeys(role for _, _, role in paths))
    role = roles[0] if len(roles) == 1 else "_".join(_SUFFIX.sub("", each) for each in roles)
    return f"{places[0]}.{role}" if places[0] else _WHOLE.get(role, role)


def _path(tensor: str) -> str:
    path = tensor.removeprefix("model.").removesuffix(".weight")
    for stored, shown in _PLACES:
        path = path.replace(f".{stored}.", f".{shown}.")
    return path
