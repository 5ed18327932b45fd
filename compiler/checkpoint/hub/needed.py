"""Which files of a repository a compilation reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dsv3c.compiler.checkpoint import gguf, shards
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, parse_object, quote
from dsv3c.compiler.checkpoint.hub.repository import RemoteFile
from dsv3c.compiler.checkpoint.sides import SIDES, TOKENIZER
from dsv3c.compiler.checkpoint.tiktoken import VOCABULARY

_SIDE = ("config.json", *SIDES)
_WHOLE = (shards.SINGLE, shards.PICKLED)  # in the order in which they are looked for
_INDEXED = (shards.INDEX, shards.PICKLED_INDEX)


def side_files(files: Mapping[str, RemoteFile]) -> list[RemoteFile]:
    """Those of config and text. Raises ValueError for one that is far larger than any such file is."""
    names = _SIDE if TOKENIZER in files else (*_SIDE, VOCABULARY)
    found = [files[name] for name in names if name in files]
    for file in found:
        if file.size > MAX_TABLE_BYTES:
            raise ValueError(f"{file.name} has {file.size} bytes")
    return found


def weight_files(files: Mapping[str, RemoteFile], read: Callable[[RemoteFile], bytes]) -> list[RemoteFile]:
    """An index and what it names, or the one file; as `shards.open_tensors` looks for them. read: an index.

    Raises ValueError for an index that is none, or that names what is not there.
    """
    for whole, index in zip(_WHOLE, _INDEXED, strict=True):
        if whole in files:
            return [files[whole]]
        if index not in files:
            continue
        if files[index].size > MAX_TABLE_BYTES:
            raise ValueError(f"{index} has {files[index].size} bytes")
        names = _shards(read(files[index]), index)
        missing = [name for name in names if name not in files]
        if missing:
            raise ValueError(f"{index} names {quote(missing[0])}, which is not there")
        return [files[index], *(files[name] for name in names)]
    raise ValueError(f"it has neither {' nor '.join((*_WHOLE, *_INDEXED))}")


def gguf_alone(files: Iterable[str]) -> str | None:
    """A GGUF file of a repository that has no weights in another form."""
    if not {*_WHOLE, *_INDEXED}.isdisjoint(files):
        return None
    return min((name for name in files if name.lower().endswith(gguf.SUFFIX)), default=None)


def _shards(data: bytes, index: str) -> list[str]:
    try:
        found = parse_object(data).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index} is no JSON: {error}") from error
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{index} has no weight_map of file names")
    return sorted(set(names))
