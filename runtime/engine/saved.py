"""Conversations on disk: the tokens of a sequence with its rows of every cache, to go on without reading them again.

The file is a safetensors file: `about` (JSON), `tokens`, a tensor of rows for each cache, and last `sha256`, over all
bytes before it. Rows mean something only to the weights that computed them, so the file names the artifact. Nothing of
it is used before all of it is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.jsonfile import open_regular, parse_json
from dsv3c.runtime.artifact.weights import ALIGNMENT, DTYPES, Tensor, read_header
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.errors import (
    FileNotRegular,
    Forked,
    MalformedJson,
    ModelClosed,
    PageMisuse,
    SavedDamaged,
    SavedElsewhere,
    SavedInvalid,
    SavedNewer,
    SavedTooLong,
    SaveRefused,
    WeightsInvalid,
)

VERSION = 1
MARK = b'{"__metadata__": {"format": "dsv3c conversation"}'  # how the header begins, behind its length
_DIGEST = 32
_ABOUT_LIMIT = 64 << 20
_CHUNK = 4 << 20
_RUN = 64  # pages that are read or written at once
_NAMES = {name: file_name for file_name, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class Saved:
    """A conversation as it was: `sequence` holds the first `sequence.length` of its tokens, the others are still to be
    fed. extra: what else was saved with it."""

    tokens: Ints
    sequence: Sequence
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    """A cache's row: elements, and their type as numpy has it."""

    width: int
    dtype: np.dtype[Any]


def require_place(path: Path) -> None:
    """Raises SaveRefused unless a conversation may be saved there: in a folder that is there, over nothing but an
    earlier one."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise SaveRefused(path=path, reason=f"{folder} is no folder that this user may write to")
    if not path.exists():
        return
    if not path.is_file() or not _head(path).startswith(MARK):
        raise SaveRefused(path=path, reason="something else is there")


def save(
    path: Path,
    session: Session,
    artifact: Artifact,
    sequence: Sequence,
    tokens: Ints,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save `tokens`, the first of which the sequence holds. extra: further JSON. The file is there as a whole, or what
    was there before is. Raises SaveRefused."""
    if tokens.size < sequence.length:
        reason = f"the sequence holds {sequence.length} tokens, {tokens.size} are to be saved"
        raise PageMisuse(page="-", reason=reason)
    require_place(path)
    about = {
        "version": VERSION,
        "artifact": artifact.identity,
        "name": artifact.folder.name,
        "target": artifact.manifest.target.name,
        "dsv3c_version": artifact.manifest.dsv3c_version,
        "extra": dict(extra or {}),
    }
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w+b") as file:
            _write(file, session, sequence, tokens.astype("<i4"), json.dumps(about, allow_nan=False).encode())
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except OSError as error:
        raise SaveRefused(path=path, reason=error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def restore(path: Path, session: Session, artifact: Artifact, context: int) -> Saved:
    """The conversation, in a new sequence of at most `context` tokens.

    Raises SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere, SavedTooLong, OutOfPages, and then nothing changed.
    """
    with os.fdopen(_open(path), "rb") as file:
        try:
            return _read(file, path, session, artifact, context)
        except WeightsInvalid as error:
            raise SavedDamaged(path=path, reason=f"{error.where}: {error.reason}") from error  # type: ignore[attr-defined]
        except (OSError, MalformedJson) as error:
            raise SavedDamaged(path=path, reason=str(error).partition("\n")[0]) from error


def _write(file: IO[bytes], session: Session, sequence: Sequence, tokens: NDArray[np.int32], about: bytes) -> None:
    rows = _rows(session)
    tensors = {"about": ("uint8", [len(about)]), "tokens": ("int32", [tokens.size])}
    tensors |= {name: (row.dtype.name, [sequence.length, row.width]) for name, row in rows.items()}
    tensors["sha256"] = ("uint8", [_DIGEST])
    header, offsets = _header(tensors)
    file.write(header)
    for name, content in (("about", about), ("tokens", tokens.tobytes())):
        file.seek(offsets[name])
        file.write(content)
    for first, slot, count in _runs(sequence, session.plan.page_size):
        with _device(session):
            found = session.device.read_slots(slot, count)
        for name, row in rows.items():
            file.seek(offsets[name] + first * row.width * row.dtype.itemsize)
            file.write(found[name].tobytes())
    digest = _digest(file, offsets["sha256"])
    file.seek(offsets["sha256"])
    file.write(digest)
    file.flush()


def _header(tensors: Mapping[str, tuple[str, list[int]]]) -> tuple[bytes, dict[str, int]]:
    """The file up to the first tensor, and where each of them begins in the file, with no hole between them."""
    entries, offsets, end = [MARK.decode()], dict[str, int](), 0
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


def _read(file: IO[bytes], path: Path, session: Session, artifact: Artifact, context: int) -> Saved:
    head = file.read(8 + len(MARK))[8:]
    if head != MARK:
        raise SavedInvalid(path=path, reason="it begins like no such file")
    tensors = read_header(file.fileno())
    _require_whole(file, path, tensors)
    about = Fields(parse_json(_content(file, tensors, "about", _ABOUT_LIMIT), "about"), "about", WeightsInvalid)
    _require_ours(about, path, artifact)
    extra = about.object("extra").value
    rows = _rows(session)
    length = _length_of(tensors, rows)
    if tensors["tokens"].elements > context:
        largest = session.plan.context
        raise SavedTooLong(path=path, tokens=tensors["tokens"].elements, context=context, largest=largest)
    found = _content(file, tensors, "tokens", 4 * context)
    tokens = session.tokens(np.frombuffer(found, "<i4").astype(np.int32))
    sequence = session.new_sequence(-(-context // session.plan.page_size))
    sequence.reserve(length)
    try:
        sequence.length = length
        _fill(file, session, sequence, tensors, rows)
    except BaseException:
        sequence.close()
        raise
    return Saved(tokens, sequence, extra)


def _require_whole(file: IO[bytes], path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises SavedDamaged unless the file ends with the hash of all before it."""
    size = os.fstat(file.fileno()).st_size
    if "sha256" not in tensors or tensors["sha256"].offset + _DIGEST != size:
        raise SavedDamaged(path=path, reason="it does not end with its sha256")
    digest = _digest(file, size - _DIGEST)
    if file.read(_DIGEST) != digest:
        raise SavedDamaged(path=path, reason="its bytes have another sha256 than it says")


def _require_ours(about: Fields, path: Path, artifact: Artifact) -> None:
    version = about.integer("version", 1, 2**31)
    if version > VERSION:
        raise SavedNewer(path=path, found=version, known=VERSION, writer=about.string("dsv3c_version"))
    if about.string("artifact") != artifact.identity:
        made = f"{about.string('name')} for {about.string('target')}, dsv3c {about.string('dsv3c_version')}"
        raise SavedElsewhere(path=path, made=made, artifact=artifact.folder)


def _length_of(tensors: Mapping[str, Tensor], rows: Mapping[str, _Row]) -> int:
    """Tokens that the caches hold. Raises WeightsInvalid unless there are just the tensors there should be."""
    strange = sorted(set(tensors) ^ {"about", "tokens", "sha256", *rows})
    if strange:
        raise WeightsInvalid(where=strange[0], reason="is missing" if strange[0] not in tensors else "is not expected")
    tokens = tensors["tokens"]
    if tokens.dtype != "int32" or len(tokens.shape) != 1:
        raise WeightsInvalid(where="tokens", reason=f"is {tokens.dtype} of {len(tokens.shape)} dimensions")
    first = next(iter(rows))
    length = tensors[first].shape[0] if tensors[first].shape else -1
    for name, row in rows.items():
        tensor = tensors[name]
        if tensor.dtype != row.dtype.name or tensor.shape != (length, row.width) or length > tokens.elements:
            expected = f"{row.dtype.name} of the shape [tokens, {row.width}]"
            raise WeightsInvalid(where=name, reason=f"is {tensor.dtype} of the shape {tensor.shape}, not {expected}")
    return length


def _fill(
    file: IO[bytes], session: Session, sequence: Sequence, tensors: Mapping[str, Tensor], rows: Mapping[str, _Row]
) -> None:
    for first, slot, count in _runs(sequence, session.plan.page_size):
        given = {}
        for name, row in rows.items():
            size = row.width * row.dtype.itemsize
            file.seek(tensors[name].offset + first * size)
            content = file.read(count * size)
            if len(content) != count * size:
                raise WeightsInvalid(where=name, reason="became shorter while it was read")
            given[name] = np.frombuffer(content, row.dtype).reshape(count, row.width)
        with _device(session):
            session.device.write_slots(slot, given)


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


def _runs(sequence: Sequence, page_size: int) -> Iterator[tuple[int, int, int]]:
    """(first token, its slot, number of tokens) of runs of pages that follow one another."""
    pages = sequence.pages[: -(-sequence.length // page_size)].tolist()
    begin = 0
    for end in range(1, len(pages) + 1):
        if end < len(pages) and pages[end] == pages[end - 1] + 1 and end - begin < _RUN:
            continue
        first = begin * page_size
        yield first, pages[begin] * page_size, min(end * page_size, sequence.length) - first
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


def _open(path: Path) -> int:
    try:
        return open_regular(path)
    except FileNotRegular as error:
        raise SavedInvalid(path=path, reason=f"it is {error.kind}") from error  # type: ignore[attr-defined]


def _head(path: Path) -> bytes:
    with os.fdopen(_open(path), "rb") as file:
        return file.read(8 + len(MARK))[8:]
