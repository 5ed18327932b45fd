"""adapter_config.json as PEFT writes it (github.com/huggingface/peft, `LoraConfig`): what scales and ranks follow from.

Which modules were adapted says the file of weights: target_modules and the like are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.fields import ConfigFields
from dsv3c.compiler.checkpoint.files import quote, read_object
from dsv3c.compiler.checkpoint.lora.errors import AdapterUnsupportedError
from dsv3c.compiler.checkpoint.patterns import follower

CONFIG = "adapter_config.json"
_MAX_RANK = 1 << 16
_LARGEST = 1e9  # of an alpha
_MADE_FOR_STACKS_AS_STORED = (0, 19, 1)  # before, PEFT took the rows of stacked experts for their inputs
# What makes more of an adapter than W + scale * B @ A. Methods that only train otherwise (EVA, VeLoRA, …) are not here.
_BEYOND = {
    "use_dora": "DoRA scales rows of the merged weight too",
    "lora_bias": "the model has no biases",
    "use_qalora": "QALoRA pools inputs",
    "use_bdlora": "its factors are blocks of a diagonal",
    "kasa_config": "KaSA changes the weights it starts from",
    "monteclora_config": "MonteCLoRA draws samples",
    "arrow_config": "Arrow chooses among adapters by token",
    "alora_invocation_tokens": "an activated LoRA is there for some tokens only",
    "trainable_token_indices": "trained rows of an embedding are no LoRA",
    "layer_replication": "it was trained on a model with other layers",
}
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """ranks, alphas: for modules that match a pattern, before `rank` and `alpha`. parameters: names of those adapted
    themselves and not by their module. ties: an embedding's adapter is that of the tied head too. base: the model that
    it was trained for, as its file calls it. stored_as_is: see `_MADE_FOR_STACKS_AS_STORED`; None: not known."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rank_stabilized: bool
    parameters: tuple[str, ...]
    ties: bool
    base: str | None
    stored_as_is: bool | None

    @staticmethod
    def read(folder: Path) -> AdapterConfig:
        """Raises UnreadableFileError, JsonError, MissingConfigKeyError, ConfigValueError, and AdapterUnsupportedError
        for what is more than LoRA, or something else."""
        path = folder / CONFIG
        fields = ConfigFields(read_object(path), path)
        _refuse(fields)
        parameters = fields.values.get("target_parameters") or []
        if not isinstance(parameters, list) or not all(isinstance(name, str) for name in parameters):
            raise fields.wrong("target_parameters", "a list of names")
        base = fields.values.get("base_model_name_or_path")
        return AdapterConfig(
            rank=fields.integer("r", 1, _MAX_RANK),
            alpha=fields.number("lora_alpha", -_LARGEST, _LARGEST),
            ranks={key: value.integer(key, 1, _MAX_RANK) for key, value in _patterns(fields, "rank_pattern")},
            alphas={key: value.number(key, -_LARGEST, _LARGEST) for key, value in _patterns(fields, "alpha_pattern")},
            rank_stabilized=fields.boolean("use_rslora", False),
            parameters=tuple(parameters),
            ties=fields.boolean("ensure_weight_tying", False),
            base=base if isinstance(base, str) and base else None,
            stored_as_is=_stored_as_is(fields.values.get("peft_version")),
        )

    def rank_of(self, module: str) -> int:
        return self.ranks.get(_matching(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        alpha, rank = self.alphas.get(_matching(self.alphas, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def key_of(self, module: str) -> str:
        """What patterns are matched with: a parameter that is adapted itself has `.weight` behind its module."""
        name = f"{module}.weight"
        return name if any(f".{name}".endswith(f".{each}") for each in self.parameters) else module


def _refuse(fields: ConfigFields) -> None:
    """Raises AdapterUnsupportedError."""
    kind = fields.values.get("peft_type")
    if kind != "LORA":
        raise _unsupported(fields, "peft_type", "it is no LoRA")
    if fields.values.get("bias") not in (None, "none"):
        raise _unsupported(fields, "bias", "the model has no biases")
    for key, reason in _BEYOND.items():
        if fields.values.get(key):
            raise _unsupported(fields, key, reason)
    start = fields.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASE):
        raise _unsupported(fields, "init_lora_weights", "it was trained on weights less its own beginning")


def _unsupported(fields: ConfigFields, key: str, reason: str) -> AdapterUnsupportedError:
    return AdapterUnsupportedError(path=fields.path, what=f"{key} = {quote(fields.values.get(key))}", reason=reason)


def _patterns(fields: ConfigFields, key: str) -> list[tuple[str, ConfigFields]]:
    """The regular expressions of an object, each with the object. Raises ConfigValueError, AdapterUnsupportedError."""
    found = fields.object(key)
    for pattern in found.values:
        try:
            re.compile(_whole(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise fields.wrong(key, f"regular expressions, {quote(pattern)} is none: {error}") from error
        if follower(_whole(pattern)) is None:
            what, reason = f"the pattern {quote(pattern)} of {key}", "it is not of the kind that can be matched quickly"
            raise AdapterUnsupportedError(path=fields.path, what=what, reason=reason)
    return [(pattern, found) for pattern in found.values]


def _whole(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"  # as PEFT's `get_pattern_key` has it


def _matching(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that the end of a module's name matches; the name itself without one."""
    found = ((pattern, follower(_whole(pattern))) for pattern in patterns)
    return next((pattern for pattern, matches in found if matches and matches(module)), module)


def _stored_as_is(version: object) -> bool | None:
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version) if isinstance(version, str) else None
    return None if found is None else tuple(int(part or 0) for part in found.groups()) >= _MADE_FOR_STACKS_AS_STORED
