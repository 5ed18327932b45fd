"""LongCat-Flash's layer of multi-token prediction, of the parts that transformers has for the main model.

transformers passes over the layer. How the parts go together is as in vLLM, models/longcat_flash_mtp.py, and SGLang,
models/longcat_flash_nextn.py, which agree.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from tests.conformance.cases import Array, Case, Ids

_PREFIX = "model.mtp."


def mtp_logits(model: Any, case: Case, tokens: Ids, hidden: Array) -> Array:
    """[T, vocab_size] for the tokens behind those of `hidden` [T, hidden_size]."""
    given = {name.removeprefix(_PREFIX): torch.from_numpy(value.copy()) for name, value in case.tensors.items()}
    layer, norm = model.model.layers[0], model.model.norm

    def loaded(module: Any, prefix: str) -> Any:
        state = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
        found = deepcopy(module)
        found.load_state_dict(state)
        return found

    own = "layers.0."
    norms = {
        name: loaded(norm, f"{own}{name}.")
        for name in ("enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm")
    }
    attention = loaded(layer.self_attn[0], f"{own}self_attn.")
    mlp = loaded(layer.mlps[0], f"{own}transformer_layer.mlp.")
    embedded = given["embed_tokens.weight"][torch.from_numpy(tokens.astype("int64"))][None]
    both = [norms["enorm.m"](embedded), norms["hnorm.m"](torch.from_numpy(hidden)[None])]
    x = torch.cat(both, dim=-1) @ given[f"{own}eh_proj.weight"].T
    count = len(tokens)
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    rotary = model.model.rotary_emb(x, torch.arange(count)[None])
    x = x + attention(norms["input_layernorm"](x), rotary, mask)[0]
    x = x + mlp(norms["post_attention_layernorm"](x))
    logits = model.lm_head(loaded(norm, "norm.")(x))
    return logits[0].numpy()  # type: ignore[no-any-return]
