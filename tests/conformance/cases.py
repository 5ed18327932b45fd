"""What is computed for each config: weights and tokens, the same on every machine, made with numpy alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import fuse_experts, tensor_shapes, text_config, write_safetensors
from tests.conformance.configs import CONFIGS

Array = NDArray[np.float32]
Ids = NDArray[np.int32]

PROMPTS = (37, 21)  # tokens of the two prompts: both end within a page
DECODED = 16
ROUTER_GAIN = 3.0  # router logits of this size choose experts by a margin that rounding does not cross
BIAS_GAIN = 0.2


@dataclass(frozen=True)
class Case:
    """A config, its weights by their names in a checkpoint, and two token sequences of unequal length."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Array]
    sequences: tuple[Ids, ...]

    @property
    def has_mtp(self) -> bool:
        return bool(self.config.get("num_nextn_predict_layers"))

    def write(self, folder: Path) -> Path:
        """The case as a checkpoint, one tensor an expert but for models that are published with one for all."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dict(self.config), indent=2))
        stacked = self.config["model_type"] == "mistral4"
        tensors = fuse_experts(self.tensors) if stacked else self.tensors
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return folder


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def case(name: str) -> Case:
    """The case of a config in the table."""
    return make_case(name, CONFIGS[name], seed_of(name))


def make_case(name: str, config: Mapping[str, Any], seed: int) -> Case:
    vocab = text_config(config)["vocab_size"]
    stream = np.random.PCG64(seed + 1)
    lengths = [length + DECODED for length in PROMPTS]
    sequences = tuple((stream.random_raw(n) % np.uint64(vocab)).astype(np.int32) for n in lengths)
    return Case(name, config, weights(config, seed), sequences)


def uniform(stream: np.random.PCG64, shape: tuple[int, ...]) -> Array:
    """Mean 0, variance 1. From the raw bits, which numpy promises never to change, and without rounding."""
    raw = stream.random_raw(int(np.prod(shape))) >> np.uint64(40)
    unit = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (unit * np.float32(3.0**0.5)).reshape(shape)


def weights(config: Mapping[str, Any], seed: int) -> dict[str, Array]:
    """Weights that keep activations and logits near 1, and route decisively."""
    stream = np.random.PCG64(seed)
    shapes = tensor_shapes(config)
    has_head = any(name.endswith("lm_head.weight") for name in shapes)
    return {name: _scaled(name, uniform(stream, shape), has_head) for name, shape in shapes.items()}


def _scaled(name: str, value: Array, has_head: bool) -> Array:
    if name.endswith("e_score_correction_bias"):
        return value * np.float32(BIAS_GAIN)
    if value.ndim == 1:
        return np.float32(1) + value * np.float32(0.1)
    if name.endswith("embed_tokens.weight") and has_head:
        return value
    gain = ROUTER_GAIN if name.endswith(("mlp.gate.weight", "mlp.router.classifier.weight")) else 1.0
    return value * np.float32(gain / value.shape[1] ** 0.5)
