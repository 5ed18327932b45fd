"""From stored tensors to the logical tensors a model is built of, with every name, shape and dtype checked.

Experts may be stored one tensor each (`mlp.experts.3.up_proj.weight`) or fused as transformers 5 holds them in memory:
`mlp.experts.gate_up_proj` [E, 2I, D], gate rows first, and `mlp.experts.down_proj` [E, D, I]. Both become
`mlp.experts.*.<gate|up|down>_proj.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.errors import ConfigConflictError, MissingTensorError, UnexpectedTensorError
from dsv3c.compiler.checkpoint.expected import EMBEDDING, HEAD, optional_tensors, required_tensors
from dsv3c.compiler.checkpoint.files import some
from dsv3c.compiler.checkpoint.quantised.deepseek import DeepseekFp8
from dsv3c.compiler.checkpoint.quantised.weight import Quantisation, Readable, Stack, Weight, tensor_of
from dsv3c.compiler.checkpoint.stored import StoredTensor, StoredWeight
from dsv3c.compiler.formats.rounding import chunks

_IN_MEMORY = {".post_mlp_layernorm.": ".mlp.post_mlp_layernorm."}  # where transformers has another name than published
# Buffers that old checkpoints carry; they follow from the config.
_IGNORED = tuple(f"rotary_emb.{name}" for name in ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached"))


@dataclass(frozen=True)
class LogicalTensor:
    """A logical tensor: its shape and its parts, one part a expert when it is stacked."""

    shape: tuple[int, ...]
    parts: tuple[Readable, ...]
    stacked: bool


def catalogue(
    config: ModelConfig,
    stored: Mapping[str, StoredTensor],
    folder: Path,
    quantisation: Quantisation | None = None,
) -> dict[str, LogicalTensor]:
    """All logical tensors by name. Raises typed errors unless `stored` is just what `config` asks for.

    quantisation: finds those that are stored in codes; without it, DeepSeek's FP8.
    """
    return _Matcher(config, stored, folder, quantisation or DeepseekFp8(config.weight_block_size)).match()


class _Matcher:
    def __init__(
        self, config: ModelConfig, stored: Mapping[str, StoredTensor], folder: Path, quantisation: Quantisation
    ) -> None:
        self.config = config
        self.quantisation = quantisation
        self.stored = stored
        self.folder = folder
        self.used: set[str] = set()
        self.missing: list[str] = []

    def match(self) -> dict[str, LogicalTensor]:
        entries: dict[str, LogicalTensor] = {}
        for name, shape in required_tensors(self.config).items():
            entries[name] = self._stack(name, shape) if ".*." in name else self._single(name, shape)
        for name, shape in optional_tensors(self.config).items():
            if name in self.stored:
                entries[name] = self._single(name, shape)
        if self.config.tie_word_embeddings and HEAD in self.stored:
            self._require_copy(self._single(HEAD, entries[EMBEDDING].shape), entries[EMBEDDING])
        if self.missing:
            raise MissingTensorError(path=self.folder, count=len(self.missing), names=some(self.missing))
        self._check_rest()
        return entries

    def _require_copy(self, head: LogicalTensor, embedding: LogicalTensor) -> None:
        """Raises ConfigConflictError unless a tied head that is stored too has the embedding's numbers; where either is
        in codes that is not compared."""
        if not all(_same_floats(*pair) for pair in zip(head.parts, embedding.parts, strict=False)):
            reason = (
                f"tie_word_embeddings is set, but {HEAD} is another matrix than {EMBEDDING}: programs disagree then"
            )
            raise ConfigConflictError(path=self.folder / "config.json", reason=reason)

    def _single(self, name: str, shape: tuple[int, ...]) -> LogicalTensor:
        weight = self._weight(name, shape)
        return LogicalTensor(shape, (weight,) if weight else (), stacked=False)

    def _stack(self, name: str, shape: tuple[int, ...]) -> LogicalTensor:
        """The experts of one projection, `name` holding `*` for their number."""
        prefix, projection = name.split(".*.")
        fused_name = f"{prefix}.{'down_proj' if projection.startswith('down') else 'gate_up_proj'}"
        experts, rows, columns = shape
        if isinstance(whole := self._find(name, shape), Stack):  # as GGUF has them
            return LogicalTensor(shape, tuple(whole.cut(expert, (0, rows)) for expert in range(experts)), stacked=True)
        halves = 2 if fused_name.endswith("gate_up_proj") else 1
        # transformers 5 has matrices for zero experts too, in gate and up alone.
        stored = self.stored.get(fused_name)
        padded = experts + (self.config.zero_expert_num if halves == 2 else 0)
        held = padded if stored is not None and stored.info.shape[:1] == (padded,) else experts
        fused = self._find(fused_name, (held, halves * rows, columns))
        if not isinstance(fused, Stack):
            return LogicalTensor(shape, self._experts(name, experts, (rows, columns)), stacked=True)
        first = rows if projection.startswith("up") else 0
        parts = (fused.cut(expert, (first, first + rows)) for expert in range(experts))
        return LogicalTensor(shape, tuple(parts), stacked=True)

    def _experts(self, name: str, count: int, shape: tuple[int, ...]) -> tuple[Weight, ...]:
        """One tensor an expert, up to the first missing one: a config may claim millions of them."""
        weights: list[Weight] = []
        for expert in range(count):
            weight = self._weight(name.replace("*", str(expert)), shape)
            if weight is None:
                break
            weights.append(weight)
        return tuple(weights)

    def _weight(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        """The weight `name`; None, noted in `missing`, when it is not there."""
        weight = self._find(name, shape) or self._find_renamed(name, shape)
        if weight is None:
            self.missing.append(name)
        return weight

    def _find(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        """The weight `name` with all tensors that belong to it; None when it is not there."""
        weight = self.quantisation.find(name, shape, self.stored)
        if weight is None:
            tensor = tensor_of(self.stored, name, [shape])
            weight = None if tensor is None else StoredWeight(tensor)
        if weight is not None:
            self.used.update(weight.names)
        return weight

    def _find_renamed(self, name: str, shape: tuple[int, ...]) -> Weight | None:
        other = next((name.replace(*pair) for pair in _IN_MEMORY.items() if pair[0] in name), None)
        return None if other is None else self._find(other, shape)

    def _check_rest(self) -> None:
        """Raises UnexpectedTensorError for stored tensors that nothing asked for."""
        rest = [name for name in self.stored if name not in self.used and not name.endswith(_IGNORED)]
        if rest:
            raise UnexpectedTensorError(path=self.folder, count=len(rest), names=some(rest))


def _same_floats(first: Readable, second: Readable) -> bool:
    arrays = [part.plain() if isinstance(part, StoredWeight) else None for part in (first, second)]
    if arrays[0] is None or arrays[1] is None:
        return True
    return all(np.array_equal(arrays[0][rows], arrays[1][rows]) for rows in chunks(*arrays[0].shape))
