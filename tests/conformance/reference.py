"""The reference: transformers, in float32 with eager attention, on the CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

from tests.conformance import longcat
from tests.conformance.cases import DECODED, Array, Case, Ids


class Reference:
    """The transformers model of a checkpoint folder."""

    def __init__(self, folder: Path) -> None:
        folder = _with_zero_experts(folder)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        # It is there, but not among those that a config finds.
        found = (transformers.Mistral4Config, transformers.Mistral4ForCausalLM)
        transformers.AutoModelForCausalLM.register(*found, exist_ok=True)
        wrapped = "text_config" in json.loads((folder / "config.json").read_text())
        kind = transformers.AutoModelForImageTextToText if wrapped else transformers.AutoModelForCausalLM
        self.model: Any = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def logits(self, tokens: Ids, decoded: int = DECODED) -> Array:
        """[tokens, vocab_size]: a prefill of all but the last `decoded` tokens, then one step for each of those."""
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        prompt = ids.shape[1] - decoded
        out = self.model(ids[:, :prompt], use_cache=True)
        parts, past = [out.logits[0]], out.past_key_values
        for at in range(prompt, ids.shape[1]):
            out = self.model(ids[:, at : at + 1], past_key_values=past, use_cache=True)
            parts.append(out.logits[0])
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def hidden(self, tokens: Ids) -> Array:
        """[tokens, hidden_size] after the final norm."""
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        return self.model.model(ids).last_hidden_state[0].numpy()

    @torch.no_grad()
    def mtp_logits(self, case: Case, tokens: Ids) -> Array:
        """[tokens - 1, vocab_size] of the first MTP layer: row t has seen the tokens up to t + 1."""
        if case.config["model_type"] == "longcat_flash":
            return longcat.mtp_logits(self.model, case, tokens[1:], self.hidden(tokens[:-1]))
        model = self._mtp_model(case)
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        hidden = torch.from_numpy(self.hidden(tokens[:-1]))[None]
        positions = torch.arange(1, ids.shape[1])[None]
        out = model.forward_layer(0, hidden, positions, None, input_ids=ids[:, 1:])
        return model.shared_head(out)[0].numpy()

    def _mtp_model(self, case: Case) -> Any:
        """transformers' own MTP model. It finds weights in published checkpoints by their layer number; here they are
        handed over, under the names and in the form that it has in memory."""
        config = self.model.config
        config.num_mtp_layers = 1
        config.mtp_mlp_layer_types = ["sparse"]
        if getattr(config, "layer_types", None):
            config.mtp_layer_types = ["full_attention"]  # a mask for sparse attention is not among those it makes
        model = MtpModel(self.model, 1).eval()
        prefix = f"model.layers.{case.config['num_hidden_layers']}."
        given = {name.removeprefix(prefix): value for name, value in case.tensors.items() if name.startswith(prefix)}
        own = ("enorm.", "hnorm.", "eh_proj.")
        state = {
            f"layers.0.{name}" if name.startswith(own) else f"layers.0.mtp_block.{name}": torch.from_numpy(value.copy())
            for name, value in _fused(given).items()
        }
        state["layers.0.post_norm.weight"] = state.pop("layers.0.mtp_block.shared_head.norm.weight")
        # The layers of GLM-5 give the tokens that they chose, too, which MtpLayer does not expect.
        model.layers[0].mtp_block.register_forward_hook(lambda _, __, out: out[0] if isinstance(out, tuple) else out)
        missing, unexpected = model.load_state_dict(state, strict=False)
        shared = ("embed_tokens.", "shared_head.", "rotary_emb.")
        assert not unexpected and all(name.startswith(shared) for name in missing), (missing, unexpected)
        return model


def _with_zero_experts(folder: Path) -> Path:
    """transformers has gate and up of zero experts too, which it doesn't use, and loads no checkpoint without them, as
    published ones are: then a copy that has them."""
    config = json.loads((folder / "config.json").read_text())
    first, count = config.get("n_routed_experts", 0), config.get("zero_expert_num", 0)
    if not count:
        return folder
    tensors = load_file(folder / "model.safetensors")
    given = [name for name in tensors if re.search(r"\.experts\.0\.(gate|up)_proj", name)]
    for expert in range(first, first + count):
        tensors |= {name.replace(".experts.0.", f".experts.{expert}."): tensors[name].clone() for name in given}
    copy = folder.with_name(f"{folder.name}-with-zero-experts")
    copy.mkdir(exist_ok=True)
    (copy / "config.json").write_text(json.dumps(config))
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def _fused(tensors: dict[str, Array]) -> dict[str, Array]:
    """One tensor for all experts: gate and up [E, 2I, D], down [E, D, I]."""
    kept = {name: value for name, value in tensors.items() if ".experts." not in name}
    count = sum(name.startswith("mlp.experts.") and name.endswith("up_proj.weight") for name in tensors)

    def stacked(part: str) -> Array:
        return np.stack([tensors[f"mlp.experts.{i}.{part}_proj.weight"] for i in range(count)])

    kept["mlp.experts.gate_up_proj"] = np.concatenate([stacked("gate"), stacked("up")], axis=1)
    kept["mlp.experts.down_proj"] = stacked("down")
    return kept
