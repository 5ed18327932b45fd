"""From stored tensors to the logical tensors a model is built of, with every name, shape and dtype checked.

Experts may be stored one tensor each (`mlp.experts.3.up_proj.weight`) or fused as transformers 5 holds them in memory:
`mlp.experts.gate_up_proj` [E, 2I, D], gate rows first, and `mlp.experts.down_proj` [E, D, I]. Both become
`mlp.experts.*.<gate|up|down>_proj.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.expected import HEAD, optional_tensors, required_tensors
from dsv3c.compiler.checkpoint.files import quote, some
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, WEIGHT_DTYPES, StoredTensor, StoredWeight
from dsv3c.compiler.errors import (
    MissingScaleError,
    MissingTensorError,
    StrayScaleError,
    TensorDtypeError,
    TensorShapeError,
    UnexpectedTensorError,
)

SCALE_SUFFIX = "_scale_inv"
_IGNORED = "rotary_emb.inv_freq"  # a buffer that old checkpoints carry; it follows from the config


@dataclass(frozen=True)
class LogicalTensor:
    """A logical tensor: its shape and its parts, one part a expert when it is stacked."""

    shape: tuple[int, ...]
    parts: tuple[StoredWeight, ...]
    stacked: bool


def catalogue(config: ModelConfig, stored: Mapping[str, StoredTensor], folder: Path) -> dict[str, LogicalTensor]:
    """All logical tensors by name. Raises typed errors unless `stored` is just what `config` asks for."""
    return _Matcher(config, stored, folder).match()


class _Matcher:
    def __init__(self, config: ModelConfig, stored: Mapping[str, StoredTensor], folder: Path) -> None:
        self.config = config
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
            self._weight(HEAD, (self.config.vocab_size, self.config.hidden_size))  # a copy of the embedding
        if self.missing:
            raise MissingTensorError(path=self.folder, count=len(self.missing), names=some(self.missing))
        self._check_rest()
        return entries

    def _single(self, name: str, shape: tuple[int, ...]) -> LogicalTensor:
        weight = self._weight(name, shape)
        return LogicalTensor(shape, (weight,) if weight else (), stacked=False)

    def _stack(self, name: str, shape: tuple[int, ...]) -> LogicalTensor:
        """The experts of one projection, `name` holding `*` for their number."""
        prefix, projection = name.split(".*.")
        fused_name = f"{prefix}.{'down_proj' if projection.startswith('down') else 'gate_up_proj'}"
        experts, rows, columns = shape
        if fused_name not in self.stored:
            return LogicalTensor(shape, self._experts(name, experts, (rows, columns)), stacked=True)
        halves = 2 if fused_name.endswith("gate_up_proj") else 1
        fused = self._weight(fused_name, (experts, halves * rows, columns))
        if fused is None:
            return LogicalTensor(shape, (), stacked=True)
        first = rows if projection.startswith("up") else 0
        parts = (replace(fused, expert=expert, rows=(first, first + rows)) for expert in range(experts))
        return LogicalTensor(shape, tuple(parts), stacked=True)

    def _experts(self, name: str, count: int, shape: tuple[int, ...]) -> tuple[StoredWeight, ...]:
        """One tensor an expert, up to the first missing one: a config may claim millions of them."""
        weights: list[StoredWeight] = []
        for expert in range(count):
            weight = self._weight(name.replace("*", str(expert)), shape)
            if weight is None:
                break
            weights.append(weight)
        return tuple(weights)

    def _weight(self, name: str, shape: tuple[int, ...]) -> StoredWeight | None:
        """The stored tensor `name` with its scale; None, noted in `missing`, when it is not there."""
        tensor = self.stored.get(name)
        if tensor is None:
            self.missing.append(name)
            return None
        self.used.add(name)
        _check_shape(tensor, shape)
        dtype = tensor.info.dtype
        if dtype not in WEIGHT_DTYPES:
            raise _wrong_dtype(tensor, WEIGHT_DTYPES)
        scale = self.stored.get(name + SCALE_SUFFIX)
        if dtype == "F8_E4M3":
            return self._scaled(tensor, scale)
        if scale is not None:
            path, scale_name = scale.file.path, scale.info.name
            raise StrayScaleError(path=path, tensor=scale_name, weight=name, found=dtype)
        return StoredWeight(tensor)

    def _scaled(self, tensor: StoredTensor, scale: StoredTensor | None) -> StoredWeight:
        path, name, shape = tensor.file.path, tensor.info.name, tensor.info.shape
        block = self.config.weight_block_size
        if scale is None:
            raise MissingScaleError(path=path, tensor=name, reason=f"there is no {quote(name + SCALE_SUFFIX)}")
        if block is None:
            reason = "config.json has no quantization_config with a weight_block_size"
            raise MissingScaleError(path=path, tensor=name, reason=reason)
        if len(shape) < 2:
            raise _wrong_dtype(tensor, FLOAT_DTYPES)
        self.used.add(scale.info.name)
        if scale.info.dtype not in FLOAT_DTYPES:
            raise _wrong_dtype(scale, FLOAT_DTYPES)
        blocks = (-(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
        _check_shape(scale, (*shape[:-2], *blocks))
        return StoredWeight(tensor, scale, block)

    def _check_rest(self) -> None:
        """Raises UnexpectedTensorError for stored tensors that nothing asked for."""
        rest = [name for name in self.stored if name not in self.used and not name.endswith(_IGNORED)]
        if rest:
            raise UnexpectedTensorError(path=self.folder, count=len(rest), names=some(rest))


def _check_shape(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.info.shape == shape:
        return
    found, expected = list(tensor.info.shape), list(shape)
    raise TensorShapeError(path=tensor.file.path, tensor=tensor.info.name, found=quote(found), expected=expected)


def _wrong_dtype(tensor: StoredTensor, expected: Iterable[str]) -> TensorDtypeError:
    path, name, found = tensor.file.path, tensor.info.name, tensor.info.dtype
    return TensorDtypeError(path=path, tensor=name, found=found, expected=" or ".join(expected))
