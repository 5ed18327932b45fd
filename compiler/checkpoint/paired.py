"""Checkpoints whose layers hold two blocks of attention and MLP each, by the names that single blocks have.

As LongCat-Flash is published and transformers has it, models/longcat_flash: block J of layer N is our layer 2N + J, and
the experts beside them are those of the first.

    model.layers.N.self_attn.J.…, mlps.J.…, input_layernorm.J.…, post_attention_layernorm.J.…
    model.layers.N.mlp.experts.…, mlp.router.classifier.weight, mlp.router.e_score_correction_bias
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from dsv3c.compiler.checkpoint.infer import LAYER_NAME
from dsv3c.compiler.checkpoint.stored import StoredTensor, renamed

_BLOCK = re.compile(r"(self_attn|mlps|input_layernorm|post_attention_layernorm)\.([01])(?=\.|$)")
_ROUTER = {"mlp.router.classifier": "mlp.gate", "mlp.router": "mlp.gate"}
_MTP = "model.mtp."


def block_name(name: str) -> str:
    """The name that a single block has for a tensor or module."""
    layer = LAYER_NAME.fullmatch(name)
    if layer is None:
        return name
    first, inner = 2 * int(layer[1]), layer[2]
    if block := _BLOCK.match(inner):
        part = "mlp" if block[1] == "mlps" else block[1]
        return f"model.layers.{first + int(block[2])}.{part}{inner[block.end() :]}"
    router = next((old for old in _ROUTER if inner == old or inner.startswith(f"{old}.")), None)
    inner = inner if router is None else _ROUTER[router] + inner.removeprefix(router)
    return f"model.layers.{first}.{inner}"


def block_tensors(stored: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of the main model by the names of blocks, and what was left out. Raises SameTensorError."""
    mtp = [name for name in stored if name.startswith(_MTP)]
    found = renamed((block_name(name), tensor) for name, tensor in stored.items() if not name.startswith(_MTP))
    if not mtp:
        return found, ()
    return found, (f"the {len(mtp)} tensors below {_MTP.removesuffix('.')} are left out: no drafts are made by them",)
