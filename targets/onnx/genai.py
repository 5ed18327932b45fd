"""genai_config.json: what onnxruntime-genai wants to know of a model.

onnxruntime-genai expects a key and a value cache a layer. Here one latent row serves as both, so both names are the
same tensor's. A cache that genai allocates once and shares between past and present is not for this graph, which
appends to what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "genai_config.json"
PAST, PRESENT = "past_key_values.%d.key", "present.%d.key"
SEARCH = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")  # of generation_config.json


def write_config(folder: Path, graph: str, provider: str, model: Mapping[str, Any], row_width: int) -> None:
    """model: the fields of the config, as the manifest has them. row_width: elements of a latent row. The folder has
    generation_config.json, if any."""
    defaults = folder / "generation_config.json"
    generation = json.loads(defaults.read_text(encoding="utf-8")) if defaults.is_file() else {}
    content = {
        "model": _model(graph, provider, model, row_width),
        "search": {
            "max_length": model["max_position_embeddings"],
            "past_present_share_buffer": False,
            **{key: generation[key] for key in SEARCH if key in generation},
        },
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _model(graph: str, provider: str, model: Mapping[str, Any], row_width: int) -> dict[str, Any]:
    ends = list(model["eos_token_ids"])
    special = {
        "bos_token_id": model["bos_token_id"],
        "eos_token_id": ends or None,
        "pad_token_id": model["pad_token_id"] if model["pad_token_id"] is not None else next(iter(ends), None),
    }
    return {
        "type": "decoder",
        **{name: token for name, token in special.items() if token is not None},
        "vocab_size": model["vocab_size"],
        "context_length": model["max_position_embeddings"],
        "decoder": {
            "filename": graph,
            "session_options": {"provider_options": [] if provider == "cpu" else [{provider: {}}]},
            "hidden_size": model["hidden_size"],
            "num_hidden_layers": model["num_hidden_layers"],
            "num_attention_heads": model["num_attention_heads"],
            "num_key_value_heads": 1,
            "head_size": row_width,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "position_ids": "position_ids",
                "past_key_names": PAST,
                "past_value_names": PAST,
            },
            "outputs": {"logits": "logits", "present_key_names": PRESENT, "present_value_names": PRESENT},
        },
    }
