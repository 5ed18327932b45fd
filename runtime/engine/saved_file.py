"""Files of cache rows: written whole or not at all, and nothing of them is used before all of it is checked.

A safetensors file: `about` (JSON), arrays of the kind's own, a tensor of rows for each cache, and last `sha256`, over
all bytes before it. Rows mean something only to the weights that computed them, so the file names the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.jsonfile import open_regular, parse_json
from dsv3c.runtime.artifact.weights import ALIGNMENT, DTYPES, Tensor, read_header
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.errors import (
    FileNotRegular,
    Forked,
    MalformedJson,
    ModelClosed,
    SavedDamaged,
    SavedElsewhere,
    SavedInvalid,
    SavedNewer,
    SaveRefused,
    WeightsInvalid,
)

_DIGEST = 32
_ABOUT_LIMIT = 64 << 20
_CHUNK = 4 << 20
_RUN = 64  # pages that are read or written at once
_NAMES = {name: file_name for file_name, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Kind:
    """What a file holds, as errors name it, and the newest format of it that is known."""

    name: str
    version: int

    @property
    def mark(self) -> bytes:
        """How the header begins, behind its length."""
        return f'{{"__metadata__": {{"format": "dsv3c {self.name}"}}'.encode()


@dataclass(frozen=True)
class Content:
    """Arrays by name, with the rows that `pages` have of the first `length` tokens in them. extra: further JSON."""

    arrays: Mapping[str, NDArray[Any]]
    pages: Ints
    length: int
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    """A cache's row: elements, and their type as numpy has it."""

    width: int
    dtype: np.dtype[Any]


def require_place(path: Path, kind: Kind) -> None:
    """Raises SaveRefused unless one may be saved there: in a folder that is there, over nothing but an earlier one."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SaveRefused(what=kind.name, path=path, reason=f"{folder} is no folder that this user may write to")
    if not path.exists():
        return
    if not path.is_file() or not _is(path, kind):
        raise SaveRefused(what=kind.name, path=path, reason="something else is there")


def write(path: Path, kind: Kind, session: Session, artifact: Artifact, content: Content) -> None:
    """The file is there as a whole, or what was there before is. Raises SaveRefused."""
    require_place(path, kind)
    about = {
        "version": kind.version,
        "artifact": artifact.identity,
        "name": artifact.folder.name,
        "target": artifact.manifest.target.name,
        "dsv3c_version": artifact.manifest.dsv3c_version,
        "extra": dict(content.extra),
    }
    arrays = {"about": np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8), **content.arrays}
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w+b") as file:
            _write(file, kind, session, arrays, content)
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise SaveRefused(what=kind.name, path=path, reason=error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


class SavedFile:
    """One that is whole and of this artifact. length: tokens that it has rows of, extra: what was saved beside them."""

    def __init__(
        self, file: IO[bytes], session: Session, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]
    ) -> None:
        self.tensors = tensors
        self.extra = extra
        self._file = file
        self._session = session
        self._rows = _rows(session)
        self.length = _length_of(tensors, self._rows)

    def array(self, name: str, dtype: str, dims: int, limit: int) -> NDArray[Any]:
        """Raises WeightsInvalid unless there is one of this type and so many dimensions, of at most `limit` bytes."""
        tensor = self.tensors[name]
        if tensor.dtype != dtype or len(tensor.shape) != dims:
            raise WeightsInvalid(where=name, reason=f"is {tensor.dtype} of {len(tensor.shape)} dimensions")
        content = _content(self._file, self.tensors, name, limit)
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).reshape(tensor.shape)

    def fill(self, pages: Ints, length: int) -> None:
        """Put the rows of the first `length` tokens into these pages."""
        for first, slot, count in _runs(pages, length, self._session.plan.page_size):
            given = {}
            for name, row in self._rows.items():
                size = row.width * row.dtype.itemsize
                self._file.seek(self.tensors[name].offset + first * size)
                content = self._file.read(count * size)
                if len(content) != count * size:
                    raise WeightsInvalid(where=name, reason="became shorter while it was read")
                given[name] = np.frombuffer(content, row.dtype).reshape(count, row.width)
            with _device(self._session):
                self._session.device.write_slots(slot, given)


@contextmanager
def opened(path: Path, kind: Kind, session: Session, artifact: Artifact, arrays: set[str]) -> Iterator[SavedFile]:
    """The file, which has just these arrays. What its reader finds wrong with it, a WeightsInvalid, is SavedDamaged.

    Raises SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere.
    """
    with os.fdopen(_open(path, kind), "rb") as file:
        try:
            yield _checked(file, path, kind, session, artifact, arrays)
        except WeightsInvalid as error:
            reason = f"{error.where}: {error.reason}"  # type: ignore[attr-defined]
            raise SavedDamaged(what=kind.name, path=path, reason=reason) from error
        except (OSError, MalformedJson) as error:
            raise SavedDamaged(what=kind.name, path=path, reason=str(error).partition("\n")[0]) from error


def _checked(
    file: IO[bytes], path: Path, kind: Kind, session: Session, artifact: Artifact, arrays: set[str]
) -> SavedFile:
    if not _begins(file, kind):
        raise SavedInvalid(what=kind.name, path=path, reason="it begins like no such file")
    tensors = read_header(file.fileno())
    _require_whole(file, path, kind, tensors)
    about = Fields(parse_json(_content(file, tensors, "about", _ABOUT_LIMIT), "about"), "about", WeightsInvalid)
    _require_ours(about, path, kind, artifact)
    strange = sorted(set(tensors) ^ {"about", "sha256", *arrays, *_rows(session)})
    if strange:
        raise WeightsInvalid(where=strange[0], reason="is missing" if strange[0] not in tensors else "is not expected")
    return SavedFile(file, session, tensors, about.object("extra").value)


def _write(file: IO[bytes], kind: Kind, session: Session, arrays: Mapping[str, NDArray[Any]], content: Content) -> None:
    rows = _rows(session)
    tensors = {name: (array.dtype.name, list(array.shape)) for name, array in arrays.items()}
    tensors |= {name: (row.dtype.name, [content.length, row.width]) for name, row in rows.items()}
    tensors["sha256"] = ("uint8", [_DIGEST])
    header, offsets = _header(kind, tensors)
    file.write(header)
    for name, array in arrays.items():
        file.seek(offsets[name])
        file.write(array.astype(array.dtype.newbyteorder("<")).tobytes())
    for first, slot, count in _runs(content.pages, content.length, session.plan.page_size):
        with _device(session):
            found = session.device.read_slots(slot, count)
        for name, row in rows.items():
            file.seek(offsets[name] + first * row.width * row.dtype.itemsize)
            file.write(found[name].tobytes())
    digest = _digest(file, offsets["sha256"])
    file.seek(offsets["sha256"])
    file.write(digest)
    file.flush()


def _header(kind: Kind, tensors: Mapping[str, tuple[str, list[int]]]) -> tuple[bytes, dict[str, int]]:
    """The file up to the first tensor, and where each of them begins in the file, with no hole between them."""
    entries, offsets, end = [kind.mark.decode()], dict[str, int](), 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        offsets[name] = end
        entry = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        entries.append(f"{json.dumps(name)}: {json.dumps(entry)}")
        end += size
    text = (", ".join(entries) + "}").encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + offset for name, offset in offsets.items()}


def _require_whole(file: IO[bytes], path: Path, kind: Kind, tensors: Mapping[str, Tensor]) -> None:
    """Raises SavedDamaged unless the file ends with the hash of all before it."""
    size = os.fstat(file.fileno()).st_size
    if "sha256" not in tensors or tensors["sha256"].offset + _DIGEST != size:
        raise SavedDamaged(what=kind.name, path=path, reason="it does not end with its sha256")
    digest = _digest(file, size - _DIGEST)
    if file.read(_DIGEST) != digest:
        raise SavedDamaged(what=kind.name, path=path, reason="its bytes have another sha256 than it says")


def _require_ours(about: Fields, path: Path, kind: Kind, artifact: Artifact) -> None:
    version = about.integer("version", 1, 2**31)
    if version > kind.version:
        writer = about.string("dsv3c_version")
        raise SavedNewer(what=kind.name, path=path, found=version, known=kind.version, writer=writer)
    if about.string("artifact") != artifact.identity:
        made = f"{about.string('name')} for {about.string('target')}, dsv3c {about.string('dsv3c_version')}"
        raise SavedElsewhere(path=path, made=made, artifact=artifact.folder)


def _length_of(tensors: Mapping[str, Tensor], rows: Mapping[str, _Row]) -> int:
    """Tokens that all caches hold. Raises WeightsInvalid."""
    first = next(iter(rows))
    length = tensors[first].shape[0] if tensors[first].shape else -1
    for name, row in rows.items():
        tensor = tensors[name]
        if tensor.dtype != row.dtype.name or tensor.shape != (length, row.width):
            expected = f"{row.dtype.name} of the shape [tokens, {row.width}]"
            raise WeightsInvalid(where=name, reason=f"is {tensor.dtype} of the shape {tensor.shape}, not {expected}")
    return length


def _content(file: IO[bytes], tensors: Mapping[str, Tensor], name: str, limit: int) -> bytes:
    if name not in tensors:
        raise WeightsInvalid(where=name, reason="is missing")
    if tensors[name].bytes > limit:
        raise WeightsInvalid(where=name, reason=f"has {tensors[name].bytes} bytes, more than {limit}")
    file.seek(tensors[name].offset)
    return file.read(tensors[name].bytes)


def _digest(file: IO[bytes], size: int) -> bytes:
    """Of the first `size` bytes, behind which the file then stands."""
    digest = hashlib.sha256()
    file.seek(0)
    while size and (chunk := file.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()


def _runs(pages: Ints, length: int, page_size: int) -> Iterator[tuple[int, int, int]]:
    """(first token, its slot, number of tokens) of runs of pages that follow one another."""
    table = pages[: -(-length // page_size)].tolist()
    begin = 0
    for end in range(1, len(table) + 1):
        if end < len(table) and table[end] == table[end - 1] + 1 and end - begin < _RUN:
            continue
        first = begin * page_size
        yield first, table[begin] * page_size, min(end * page_size, length) - first
        begin = end


def _rows(session: Session) -> dict[str, _Row]:
    # Asked of the device: the plan of a session over two of them has the caches of one only.
    with _device(session):
        empty = session.device.read_slots(0, 0)
    return {name: _Row(array.shape[1], array.dtype) for name, array in empty.items()}


def _device(session: Session) -> Any:
    """The turn at the device of a session that may use it."""
    if session.closed:
        raise ModelClosed()
    if not session.usable:
        raise Forked(device=type(session.device).__name__)
    return session.turns


def _open(path: Path, kind: Kind) -> int:
    try:
        return open_regular(path)
    except FileNotRegular as error:
        raise SavedInvalid(what=kind.name, path=path, reason=f"it is {error.kind}") from error  # type: ignore[attr-defined]


def _is(path: Path, kind: Kind) -> bool:
    with os.fdopen(_open(path, kind), "rb") as file:
        return _begins(file, kind)


def _begins(file: IO[bytes], kind: Kind) -> bool:
    return file.read(8 + len(kind.mark))[8:] == kind.mark
