"""The text files of a checkpoint: of its folder, or made of a tiktoken vocabulary, or of the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dsv3c.compiler.checkpoint import gguf, tiktoken
from dsv3c.compiler.checkpoint.errors import UnknownVocabularyError
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, exists, read_bytes, read_object_of, refuse_pointer

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
DEFAULTS = "generation_config.json"
TEMPLATE = "chat_template.jinja"
_CONFIG_LIMIT = 16 << 20  # what the runtime reads
_LIMITS = {TOKENIZER: MAX_TABLE_BYTES, TOKENIZER_CONFIG: _CONFIG_LIMIT, DEFAULTS: _CONFIG_LIMIT, TEMPLATE: 1 << 20}
SIDES = tuple(_LIMITS)


def side_path(checkpoint: Path, name: str) -> Path:
    """Where one of SIDES lies, for a message."""
    if gguf.is_gguf(checkpoint):
        return checkpoint
    return checkpoint / (tiktoken.VOCABULARY if name == TOKENIZER and is_converted(checkpoint) else name)


def side_bytes(checkpoint: Path, name: str) -> bytes | None:
    """The content of one of SIDES; None when the checkpoint has nothing for it.

    Raises UnreadableFileError, PointerFileError; for a GGUF file what `gguf.text` raises; for a tokenizer that is made
    of a tiktoken vocabulary what `tiktoken.converted` does.
    """
    if gguf.is_gguf(checkpoint):
        return gguf.text(checkpoint, name)
    if name == TOKENIZER and is_converted(checkpoint):
        return tiktoken.converted(checkpoint / tiktoken.VOCABULARY, side_object(checkpoint, TOKENIZER_CONFIG) or {})
    path = checkpoint / name
    if not exists(path):
        return None
    data = read_bytes(path, _LIMITS[name])
    refuse_pointer(data, path)
    return data


def side_object(checkpoint: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in one of SIDES. Raises as `side_bytes`, and JsonError."""
    data = side_bytes(checkpoint, name)
    return None if data is None else read_object_of(data, side_path(checkpoint, name))


def usable_tokenizer(checkpoint: Path) -> bytes | None:
    """tokenizer.json, as `side_bytes`; None also for a vocabulary that cannot be used."""
    try:
        return side_bytes(checkpoint, TOKENIZER)
    except UnknownVocabularyError:
        return None


def is_converted(checkpoint: Path) -> bool:
    """Whether tokenizer.json is made of the tiktoken vocabulary of a folder that has none."""
    return exists(checkpoint / tiktoken.VOCABULARY) and not exists(checkpoint / TOKENIZER)


def write_sides(checkpoint: Path, folder: Path) -> None:
    """Give a folder the text files that can be used, each as it is in the checkpoint or made of what is there."""
    for name in SIDES:
        data = usable_tokenizer(checkpoint) if name == TOKENIZER else side_bytes(checkpoint, name)
        if data is not None:
            (folder / name).write_bytes(data)


@contextmanager
def side_folder(checkpoint: Path) -> Iterator[Path]:
    """A folder that has the text files, while it is needed."""
    if not gguf.is_gguf(checkpoint) and not is_converted(checkpoint):
        yield checkpoint
        return
    with TemporaryDirectory() as folder:
        write_sides(checkpoint, Path(folder))
        yield Path(folder)
