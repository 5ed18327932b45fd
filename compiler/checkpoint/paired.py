"""Checkpoints whose layers hold two blocks of attention and MLP each, by the names that single blocks have.

As LongCat-Flash is published and transformers has it, models/longcat_flash: block J of layer N is our layer 2N + J, and
the experts beside them are those of the first.

    model.layers.N.self_attn.J.…, mlps.J.…, input_layernorm.J.…, post_attention_layernorm.J.…
    model.layers.N.mlp.experts.…, mlp.router.classifier.weight, mlp.router.e_score_correction_bias

A layer of multi-token prediction has one block and no experts, and is our layer behind the main ones. As published, and
as vLLM has it, models/longcat_flash_mtp.py (transformers has none):

    model.mtp.embed_tokens.weight, model.mtp.norm.weight: its own embedding, and the norm before the head
    model.mtp.layers.0.enorm.m.weight, hnorm.m.weight, eh_proj.…, self_attn.…, transformer_layer.mlp.…
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dsv3c.compiler.checkpoint.infer import LAYER_NAME
from dsv3c.compiler.checkpoint.stored import StoredTensor, renamed

_BLOCK = re.compile(r"(self_attn|mlps|input_layernorm|post_attention_layernorm)\.([01])(?=\.|$)")
_ROUTER = {"mlp.router.classifier": "mlp.gate", "mlp.router": "mlp.gate"}
_MTP = re.compile(r"model\.mtp(?:\.layers\.0)?(?:\.(.+))?", re.DOTALL)
_OF_MTP = {"enorm.m": "enorm", "hnorm.m": "hnorm", "norm": "shared_head.norm", "transformer_layer.mlp": "mlp"}


def block_count(names: Iterable[str]) -> int:
    """How many of our layers the main model has, by the names of all tensors."""
    return 2 * max((int(layer[1]) + 1 for layer in map(LAYER_NAME.fullmatch, names) if layer), default=0)


def block_name(name: str, blocks: int) -> str:
    """The name that a single block has for a tensor or module, of a main model with so many `blocks`."""
    if drafting := _MTP.fullmatch(name):
        inner = "" if drafting[1] is None else f".{_renamed(drafting[1], _OF_MTP)}"
        return f"model.layers.{blocks}{inner}"
    layer = LAYER_NAME.fullmatch(name)
    if layer is None:
        return name
    first, inner = 2 * int(layer[1]), layer[2]
    if block := _BLOCK.match(inner):
        part = "mlp" if block[1] == "mlps" else block[1]
        return f"model.layers.{first + int(block[2])}.{part}{inner[block.end() :]}"
    return f"model.layers.{first}.{_renamed(inner, _ROUTER)}"


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """The name with another one for the first of `modules` that it is or is in."""
    module = next((old for old in modules if name == old or name.startswith(f"{old}.")), None)
    return name if module is None else modules[module] + name.removeprefix(module)


def block_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the names of blocks. Raises SameTensorError."""
    blocks = block_count(stored)
    return renamed((block_name(name, blocks), tensor) for name, tensor in stored.items())
