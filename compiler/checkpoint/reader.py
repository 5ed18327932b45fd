"""A checkpoint, a folder or a GGUF file, as logical tensors that decode to float32."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint import gguf, nested, paired, quantised
from dsv3c.compiler.checkpoint.catalog import LogicalTensor, catalogue
from dsv3c.compiler.checkpoint.config import ModelConfig, complete_config
from dsv3c.compiler.checkpoint.errors import UnknownTensorError, UnreadableFileError
from dsv3c.compiler.checkpoint.expected import HEAD
from dsv3c.compiler.checkpoint.files import exists, file_size, read_object
from dsv3c.compiler.checkpoint.infer import LAYER_NAME
from dsv3c.compiler.checkpoint.lora import Adapter, merged
from dsv3c.compiler.checkpoint.members import member_of
from dsv3c.compiler.checkpoint.origin import hub_source, model_name
from dsv3c.compiler.checkpoint.quantised.weight import Quantisation
from dsv3c.compiler.checkpoint.shards import open_tensors
from dsv3c.compiler.checkpoint.sides import DEFAULTS, TOKENIZER, TOKENIZER_CONFIG, is_converted
from dsv3c.compiler.checkpoint.stored import Float32, StoredTensor, StoredWeight
from dsv3c.compiler.checkpoint.tiktoken import VOCABULARY
from dsv3c.compiler.checkpoint.tokenizer import check_tokenizer
from dsv3c.compiler.checkpoint.unused import without_unused
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.keeping import Coding
from dsv3c.compiler.options import Lora

CONFIG = "config.json"
_SIDE_FILES = (CONFIG, DEFAULTS, TOKENIZER, TOKENIZER_CONFIG)
_HASH_CHUNK = 1 << 20  # stays in the cache between reading and hashing


@dataclass(frozen=True)
class Source:
    """What a checkpoint is read from, whatever its form.

    stored: the text model's tensors by the names that Hugging Face has for them. values: what config.json says of that
    model, in the file `config`. folder: where `weight_files` lie. named: the name in `stored` of what the checkpoint
    calls a module or tensor.
    """

    stored: Mapping[str, StoredTensor]
    values: Mapping[str, Any]
    config: Path
    quantisation: Quantisation
    folder: Path
    weight_files: tuple[str, ...]
    notes: tuple[str, ...]
    named: Callable[[str], str] = str

    @classmethod
    def open(cls, path: Path) -> Source:
        """Of a folder, or of a GGUF file. Raises a CheckpointError for every fault of headers."""
        if gguf.is_gguf(path):
            model = gguf.open_model(path)
            return cls(model.stored, model.values, path, model.blocks, path.parent, model.files, model.notes)
        stored, weight_files, warnings = open_tensors(path)
        config = path / CONFIG
        outer = read_object(config)
        stored, left_out = nested.text_tensors(outer, stored)
        values = nested.text_values(outer, config)
        named: Callable[[str], str] = nested.inner_name if nested.is_wrapper(outer) else str
        if member_of(values).paired:
            named = partial(paired.block_name, blocks=paired.block_count(stored))
            stored, values = paired.block_tensors(stored), nested.with_modules(values, named)
        quantisation = quantised.parse(values, config)
        return cls(stored, values, config, quantisation, path, weight_files, left_out + warnings, named)


class Checkpoint:
    """A checked checkpoint. `shapes` are those of the logical tensors, in the order of the computation.

    In a logical name `*` stands for the number of an expert: such a tensor is stacked, its first dimension the experts,
    and `parts` and `part` give one expert at a time. A tied head is not listed. `stored` are the tensors as files have
    them, `weight_files` these files. `notes` are sentences about what was inferred, ignored or found odd. With
    adapters, tensors are what these make of them when they are read.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        entries: Mapping[str, LogicalTensor],
        source: Source,
        notes: tuple[str, ...],
        adapters: tuple[Adapter, ...] = (),
    ) -> None:
        self.path = path
        self.config = config
        self.notes = notes
        self.adapters = adapters
        self.shapes = {name: entry.shape for name, entry in entries.items()}
        self.stored = source.stored
        self.weight_files = {name: source.folder / name for name in source.weight_files}
        self._entries = entries

    @classmethod
    def open(cls, path: Path | str, lora: Sequence[Lora] = ()) -> Checkpoint:
        """Check names, shapes and dtypes of a whole folder or GGUF file, and of adapters, which are merged in their
        order; no data is read but the order of GPTQ's groups, and a tied head that is stored beside the embedding.

        Raises a subclass of CheckpointError for every fault.
        """
        path = Path(path)
        source = Source.open(path)
        shapes = {name: tensor.info.shape for name, tensor in source.stored.items()}
        config, inferred = complete_config(source.values, source.config, shapes)
        config, stored, mtp_notes = _settle_mtp(config, source.stored)
        stored, unused_notes = without_unused(config, stored)
        entries = catalogue(config, stored, path, source.quantisation)
        beyond = check_tokenizer(path, config.vocab_size)
        tied = config.tie_word_embeddings and HEAD in stored
        ignored = (f"{HEAD} is ignored: tie_word_embeddings is set, the embedding is the head",) if tied else ()
        notes = inferred + mtp_notes + unused_notes + ignored + source.notes + beyond
        if not lora:
            return cls(path, config, entries, source, notes)
        found = merged(config, entries, lora, source.named)
        return cls(path, found.config, found.entries, source, notes + found.notes, found.adapters)

    def read(self, name: str) -> Float32:
        """The whole tensor, with all experts when it is stacked. Errors as for `part`."""
        entry = self._entry(name)
        out = np.empty(entry.shape, np.float32)
        for index, weight in enumerate(entry.parts):
            weight.decode(out[index] if entry.stacked else out)
        return out

    def parts(self, name: str) -> Iterator[Float32]:
        """The experts of a stacked tensor one after the other; a tensor that is not stacked is its one part."""
        return (weight.decode() for weight in self._entry(name).parts)

    def part(self, name: str, index: int) -> Float32:
        """One expert of a stacked tensor.

        Raises UnknownTensorError, NonFiniteWeightError, ScaleValueError, ChangedFileError.
        """
        return self._entry(name).parts[index].decode()

    def coding(self, name: str) -> Coding | None:
        """How a tensor is stored in codes; None for floats. Experts that are not all stored alike fit no format."""
        found = {part.coding for part in self._entry(name).parts}
        codings = [coding for coding in found if coding is not None]
        return replace(codings[0], group=None) if len(found) > 1 else next(iter(codings), None)

    def coded(self, name: str, index: int | None = None) -> NDArray[Any]:
        """A tensor, or one expert of a stacked one: of coded.KINDS where it is stored so, float32 else.

        Errors as `part`.
        """
        entry = self._entry(name)
        if index is not None:
            return entry.parts[index].coded()
        if not entry.stacked:
            return entry.parts[0].coded()
        parts = [weight.coded() for weight in entry.parts]
        return np.stack(parts if len({part.dtype for part in parts}) == 1 else [as_float32(part) for part in parts])

    def plain(self, name: str, index: int | None = None) -> NDArray[Any]:
        """A tensor, or one expert of a stacked one, as `StoredWeight.plain` gives it where it can; float32 else.

        Errors as `part`.
        """
        parts = self._entry(name).parts
        if index is None and self._entry(name).stacked:
            return self.read(name)
        part = parts[index or 0]
        found = part.plain() if isinstance(part, StoredWeight) else None
        return part.decode() if found is None else found

    def files(self) -> dict[str, Path]:
        """Every file the model comes from, by what it is called; those of adapters are called by number and scale."""
        vocabulary = (VOCABULARY,) if is_converted(self.path) else ()
        side = (name for name in (*_SIDE_FILES, *vocabulary) if exists(self.path / name))
        found = {name: self.path / name for name in side} | self.weight_files
        for number, adapter in enumerate(self.adapters, start=1):
            found |= {f"lora.{number}/{adapter.given}/{path.name}": path for path in adapter.files}
        return found

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 in hex of every file the model comes from."""
        files = self.files()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            return dict(zip(files, pool.map(_sha256, files.values()), strict=True))

    @contextmanager
    def hashing(self) -> Iterator[Callable[[], dict[str, str]]]:
        """Hash the files beside what the body does, but for one CPU; what is yielded waits for `file_hashes`."""
        ended, files = threading.Event(), self.files()
        with ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) - 1)) as pool:
            largest_first = sorted(files, key=lambda name: file_size(files[name]), reverse=True)
            found = {name: pool.submit(_sha256, files[name], ended) for name in largest_first}
            try:
                yield lambda: {name: found[name].result() for name in files}
            finally:
                ended.set()
                pool.shutdown(cancel_futures=True)

    def provenance(self, hashes: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What a manifest says of where the weights come from, the hashes of adapters' files among those of all.

        hashes: `file_hashes`, where they are known already.
        """
        hub, files = hub_source(self.path), dict(hashes or self.file_hashes())
        found = {"name": model_name(self.path), **({"hub": hub} if hub else {}), "files": files}
        adapters = [{"name": adapter.name, "scale": adapter.given.scale} for adapter in self.adapters]
        return {**found, "adapters": adapters} if adapters else found

    def _entry(self, name: str) -> LogicalTensor:
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownTensorError(tensor=name)
        return entry


def _settle_mtp(
    config: ModelConfig, stored: Mapping[str, StoredTensor]
) -> tuple[ModelConfig, dict[str, StoredTensor], tuple[str, ...]]:
    """Config and tensors that agree on whether there are MTP layers, and what was decided.

    They are stored behind the main layers. All or none may be left out; a part of one is found missing later.
    """
    mtp = {name for name in stored if _layer_of(name) >= config.num_hidden_layers}
    count = config.num_nextn_predict_layers
    if count and not mtp:
        note = f"config.json announces {count} MTP layers, but the checkpoint has none; they are left out"
        return config.without_mtp(), dict(stored), (note,)
    if not count and mtp:
        note = f"the {len(mtp)} tensors of MTP layers are ignored: num_nextn_predict_layers is 0"
        return config, {name: tensor for name, tensor in stored.items() if name not in mtp}, (note,)
    return config, dict(stored), ()


def _layer_of(name: str) -> int:
    match = LAYER_NAME.fullmatch(name)
    return int(match[1]) if match else -1


def _sha256(path: Path, ended: threading.Event | None = None) -> str:
    """ended: that nobody waits for it any more."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(_HASH_CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while (ended is None or not ended.is_set()) and (count := file.readinto(chunk)):
                digest.update(chunk[:count])
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror) from error
    return digest.hexdigest()
