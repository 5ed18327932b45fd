"""Checkpoints that are already quantised: one file for each `quant_method` of a quantization_config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import UnknownQuantisationError
from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.quantised.awq import Awq
from dsv3c.compiler.checkpoint.quantised.compressed import CompressedTensors
from dsv3c.compiler.checkpoint.quantised.deepseek import DeepseekFp8
from dsv3c.compiler.checkpoint.quantised.gptq import Gptq
from dsv3c.compiler.checkpoint.quantised.mxfp4 import Mxfp4
from dsv3c.compiler.checkpoint.quantised.weight import Quantisation

FP8 = "fp8"
_PARSERS: Mapping[str, Callable[[ConfigFields], Quantisation]] = {
    FP8: lambda config: DeepseekFp8.parse(config, block_size(config)),
    "gptq": Gptq.parse,
    "awq": Awq.parse,
    "compressed-tensors": CompressedTensors.parse,
    "mxfp4": Mxfp4.parse,
}
METHODS = tuple(_PARSERS)
_KEYS = ("quantization_config", "compression_config")  # the second as older files of compressed-tensors have it
_MAX_BLOCK = 1 << 24


def parse(values: Mapping[str, Any], path: Path) -> Quantisation:
    """What the object of a config.json says of codes; `path` is for messages. Raises a CheckpointError."""
    config = quantization_config(ConfigFields(values, path))
    if not config.values:
        return DeepseekFp8(None)
    method = config.values.get("quant_method")
    if not isinstance(method, str) or method not in _PARSERS:
        raise UnknownQuantisationError(path=path, method=quote(method), known=", ".join(METHODS))
    return _PARSERS[method](config)


def quantization_config(config: ConfigFields) -> ConfigFields:
    """The object that says how weights are quantised, empty when there is none."""
    return next((found for key in _KEYS if (found := config.object(key)).values), config.object(_KEYS[0]))


def block_size(config: ConfigFields) -> tuple[int, int] | None:
    """The blocks of FP8, None for one scale a tensor. Raises ConfigValueError, UnsupportedConfigError."""
    if config.values.get("fmt", "e4m3") != "e4m3":
        raise config.unsupported("fmt", "known is e4m3")
    if not config.has("weight_block_size"):
        return None
    block = config.values["weight_block_size"]
    if not isinstance(block, list) or len(block) != 2:
        raise config.wrong("weight_block_size", "a list of two sizes")
    if not all(type(size) is int and 1 <= size <= _MAX_BLOCK for size in block):
        raise config.wrong("weight_block_size", "a list of two sizes")
    return block[0], block[1]
