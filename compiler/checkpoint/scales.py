"""Numbers that parts of a model are multiplied by."""

from __future__ import annotations

import math
from typing import Any

from dsv3c.compiler.checkpoint.fields import ConfigFields

_MAX_BASE = 2**20


def parse_scales(config: ConfigFields, layers: int, hidden: int, q_rank: int | None, kv_rank: int) -> dict[str, Any]:
    """Those of ModelConfig, by name; null and absent keys change nothing. Raises ConfigValueError.

    Embedding, residuals and logits as MiniCPM has them (arXiv 2404.06395, section 4). Latents as LongCat-Flash has them
    (arXiv 2509.01322, section 2.3): as large as if they had the width of the hidden state.
    """
    depth = config.number("scale_depth", 1e-6, 1e6, math.sqrt(layers))
    scales_q, scales_kv = (config.boolean(f"mla_scale_{part}_lora", False) for part in ("q", "kv"))
    return {
        "embedding_scale": config.number("scale_emb", 1e-6, 1e6, 1.0),
        "residual_scale": depth / math.sqrt(layers),
        "logits_scale": config.integer("dim_model_base", 1, _MAX_BASE, hidden) / hidden,
        "q_latent_scale": math.sqrt(hidden / q_rank) if scales_q and q_rank else 1.0,
        "kv_latent_scale": math.sqrt(hidden / kv_rank) if scales_kv else 1.0,
    }
