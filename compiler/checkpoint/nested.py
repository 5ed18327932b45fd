"""Multimodal checkpoints, read as the text model inside: its config lies in text_config, its tensors below a prefix.

Published ones have `language_model.model.layers…` and `language_model.lm_head.weight` (Kimi-K2.5); transformers 5 has
`model.language_model.layers…` and `lm_head.weight` in memory, and saves that on request (its conversion_mapping.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.members import WRAPPERS
from dsv3c.compiler.checkpoint.stored import StoredTensor, renamed

_PREFIXES = {"language_model.": "", "model.language_model.": "model."}
_TEXT = ("lm_head.", "model.layers.", "model.embed_tokens.", "model.norm.")  # as the text model alone names its own
_OUTER = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "compression_config")


def is_wrapper(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a multimodal model around one of the family."""
    return isinstance(values.get("model_type"), str) and values["model_type"] in WRAPPERS


def text_values(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config of the text model; what only the outer one has of it, such as special ids, is taken from there.

    Any other config is its own text model. Raises ConfigValueError.
    """
    if not is_wrapper(values):
        return dict(values)
    config = ConfigFields(values, path)
    text = config.object("text_config")
    if not text.values:
        raise config.wrong("text_config", "the config of the text model")
    known = {key: values[key] for key in _OUTER if values.get(key) is not None}
    known |= {key: value for key, value in text.values.items() if value is not None or key not in known}
    if values.get("tie_word_embeddings") is not None:  # the head is the outer model's
        known["tie_word_embeddings"] = values["tie_word_embeddings"]
    known.setdefault("model_type", WRAPPERS[values["model_type"]])
    return with_modules(known, inner_name)


def text_tensors(
    values: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of the text model by its own names, and what was left out. Raises SameTensorError."""
    if not is_wrapper(values):
        return dict(stored), ()
    inner = {name: inner_name(name) for name in stored}
    text = renamed((inner[name], tensor) for name, tensor in stored.items() if inner[name].startswith(_TEXT))
    others = (name for name in stored if not inner[name].startswith(_TEXT))
    left_out = Counter(name.removeprefix("model.").split(".")[0] for name in others)
    if not left_out:
        return text, ()
    names = ", ".join(f"{quote(part)} ({count} tensors)" for part, count in left_out.items())
    kind = values["model_type"]
    return text, (f"of {kind} the text model is compiled, which reads no images: {names} left out",)


def inner_name(name: str) -> str:
    """The name that the text model itself has for a tensor or module."""
    for prefix, instead in _PREFIXES.items():
        if name.startswith(prefix):
            return instead + name.removeprefix(prefix)
    return name


def with_modules(values: Mapping[str, Any], named: Callable[[str], str]) -> dict[str, Any]:
    """The config with other names in its lists of modules, such as of those that are not quantised."""

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [named(entry) if isinstance(entry, str) else entry for entry in value]
        return value

    found = dict(values)
    for key in ("quantization_config", "compression_config"):
        if isinstance(found.get(key), dict):
            found[key] = {name: renamed(value) for name, value in found[key].items()}
    return found
