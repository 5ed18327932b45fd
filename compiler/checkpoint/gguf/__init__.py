"""Checkpoints in GGUF, the files of llama.cpp: a model in one file, or in the parts that a split one has.

container: the format · names, config, texts: what its names and keys are in a folder of Hugging Face · weights: blocks
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import GgufMissingError, GgufSplitError
from dsv3c.compiler.checkpoint.files import exists, quote
from dsv3c.compiler.checkpoint.gguf.config import config_of
from dsv3c.compiler.checkpoint.gguf.container import FLOATS, GgufFile
from dsv3c.compiler.checkpoint.gguf.keys import Keys
from dsv3c.compiler.checkpoint.gguf.names import LONG_FACTORS, SHORT_FACTORS, known_as
from dsv3c.compiler.checkpoint.gguf.texts import NAMES, lacking, text_of
from dsv3c.compiler.checkpoint.gguf.weights import KEPT, Blocks
from dsv3c.compiler.checkpoint.stored import StoredTensor

SUFFIX = ".gguf"
TEXTS = NAMES
_MAX_PARTS = 10_000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Whether a checkpoint is such a file, told by its name."""
    return path.suffix.lower() == SUFFIX and not path.is_dir()


def stem(path: Path) -> str:
    """What a model is called by the name of its file, or of any part."""
    part = _PART.fullmatch(path.name)
    return part["stem"] if part else path.stem


@dataclass(frozen=True)
class GgufModel:
    """values: config.json as the keys have it. files: names of the parts, which lie beside one another."""

    stored: Mapping[str, StoredTensor]
    files: tuple[str, ...]
    values: dict[str, Any]
    blocks: Blocks
    notes: tuple[str, ...]


def open_model(path: Path) -> GgufModel:
    """Reads headers alone. Raises a CheckpointError for every fault of the container and its keys, GgufMissingError."""
    files = _parts(path)
    stored = {name: StoredTensor(file, info) for file in files for name, info in file.tensors.items()}
    keys = Keys(files[0].values, files[0].path)
    values, notes = config_of(keys, stored)
    blocks = Blocks(values["num_attention_heads"], values["qk_nope_head_dim"], values["v_head_dim"])
    without = lacking(keys.under("tokenizer.ggml."))
    notes += (without,) if without else ()
    if (values.get("rope_scaling") or {}).get("type") == "longrope":
        stored = {name: tensor for name, tensor in stored.items() if name not in (LONG_FACTORS, SHORT_FACTORS)}
    return GgufModel(stored, tuple(file.path.name for file in files), values, blocks, notes + _decoded(stored))


def text(path: Path, name: str) -> bytes | None:
    """The text file that a folder of Hugging Face has under that name, made of the keys; None where they have nothing
    for it. Raises a CheckpointError."""
    if name not in TEXTS:
        return None
    first = _first(path)
    return text_of(name, GgufFile(first, known_as).values, first)


def _decoded(stored: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    """A note of what no format of ours can keep. Raises GgufMissingError when it cannot be decoded."""
    kinds = Counter(tensor.info.dtype for tensor in stored.values() if tensor.info.dtype not in (*FLOATS, *KEPT))
    if not kinds:
        return ()
    if find_spec("gguf") is None:
        raise GgufMissingError(format=", ".join(kinds))
    told = ", ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
    return (f"tensors that no format here has the grid of are decoded, then taken for floats: {told}",)


def _first(path: Path) -> Path:
    part = _PART.fullmatch(path.name)
    return path if part is None else path.with_name(_name_of(part, 1))


def _name_of(part: re.Match[str], number: int) -> str:
    """Of another part of the same model."""
    return f"{part['stem']}-{number:05}-of-{part['count']}{SUFFIX}"


def _parts(path: Path) -> list[GgufFile]:
    """Raises GgufSplitError unless all parts are there, and each is the one that it is called."""
    part = _PART.fullmatch(path.name)
    count = 1 if part is None else int(part["count"])
    if not 1 <= count <= _MAX_PARTS:
        raise GgufSplitError(path=path, reason=f"its name tells of {count} parts")
    paths = [path] if part is None else [path.with_name(_name_of(part, number + 1)) for number in range(count)]
    if part is not None and (missing := [each.name for each in paths if not exists(each)]):
        raise GgufSplitError(path=path, reason=f"{len(missing)} parts are missing, such as {missing[0]}")
    files = [GgufFile(each, known_as) for each in paths]
    names: set[str] = set()
    for number, file in enumerate(files):
        keys = Keys(file.values, file.path, "split.")
        found, of = keys.integer("no") or 0, keys.integer("count") or 1
        if (found, of) != (number, count):
            raise GgufSplitError(path=file.path, reason=f"it says that it is number {found + 1} of {of}")
        if twice := names & file.tensors.keys():
            raise GgufSplitError(path=file.path, reason=f"{quote(min(twice))} is in another part too")
        names |= file.tensors.keys()
    total = Keys(files[0].values, files[0].path, "split.").integer("tensors.count")
    if total is not None and total != len(names):
        raise GgufSplitError(path=path, reason=f"all parts should have {total} tensors, they have {len(names)}")
    return files
