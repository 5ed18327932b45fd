"""Checkpoints by their id on a hub: fetched once into the cache that other programs use too, or looked at from afar.

Files lie as huggingface_hub keeps them (its docs/guides/manage-cache): blobs/HASH, and snapshots/COMMIT/NAME a link to
it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES
from dsv3c.compiler.checkpoint.hub import needed, transfer
from dsv3c.compiler.checkpoint.hub.errors import (
    HubAnswerError,
    HubFileError,
    HubGgufError,
    HubStoreError,
    HubUnreachableError,
    HubWeightsError,
)
from dsv3c.compiler.checkpoint.hub.repository import HubId, RemoteFile, Repository
from dsv3c.runtime.progress import Progress, Silent

_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Afar:
    """A folder with all but the data of weights: their files have headers and sizes, and zeros for the rest.

    download_bytes: what compiling would fetch, in `files` files; 0 for a folder that is here. read_bytes: what was
    fetched for this.
    """

    folder: Path
    download_bytes: int = 0
    files: int = 0
    read_bytes: int = 0


def local(path: Path, progress: Progress | None = None) -> Path:
    """The folder of a checkpoint: `path` itself, or where the files of a hub id lie, which are fetched if need be.

    Where the hub cannot be reached, a snapshot of that revision that is there is taken. Raises HubError.
    """
    asked, progress = HubId.parse(path), progress or Silent()
    if asked is None:
        return path
    try:
        repository = Repository.ask(asked)
    except HubUnreachableError:
        kept = _kept(asked)
        if kept is None:
            raise
        return kept
    store = _store(asked.id)
    try:
        return _all_of(repository, asked, store, progress)
    except OSError as error:  # of the network it is a HubError by now
        raise HubStoreError(path=store, reason=error.strerror or error) from error


def _all_of(repository: Repository, asked: HubId, store: Path, progress: Progress) -> Path:
    """The snapshot, with all that is needed. Raises HubError, OSError."""
    snapshot = store / "snapshots" / repository.commit
    for folder in (store / "blobs", store / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)

    def fetch(file: RemoteFile) -> bytes:
        return _fetch(repository, file, store, snapshot, progress).read_bytes()

    side, weights = _needed(repository, fetch)
    progress.stage(f"fetching {asked.id}", sum(file.size for file in (*side, *weights)))
    for file in (*side, *weights):
        _fetch(repository, file, store, snapshot, progress)
    reference = store / "refs" / (asked.revision or "main")
    if not reference.is_file() or reference.read_text() != repository.commit:
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(repository.commit)
    return snapshot


@contextmanager
def afar(path: Path) -> Iterator[Afar]:
    """What `dsv3c plan` needs of a checkpoint: of a hub id the headers alone, by ranges. Raises HubError."""
    asked = HubId.parse(path)
    if asked is None:
        yield Afar(path)
        return
    repository = Repository.ask(asked)
    with tempfile.TemporaryDirectory(prefix="dsv3c-plan-") as place:
        folder = Path(place) / _store(asked.id).name / "snapshots" / repository.commit
        try:
            seen = _headers(repository, folder)
        except OSError as error:  # as in `local`
            raise HubStoreError(path=place, reason=error.strerror or error) from error
        yield seen


def _headers(repository: Repository, folder: Path) -> Afar:
    """Fill the folder. Raises HubError, OSError."""
    folder.mkdir(parents=True)
    read = 0

    def whole(file: RemoteFile) -> bytes:
        nonlocal read
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        transfer.download(file, repository.url(file.name), repository.headers, target, lambda count: None)
        read += file.size
        return target.read_bytes()

    side, weights = _needed(repository, whole)
    for file in side:
        whole(file)
    for file in weights:
        read += _write_header(repository, file, folder) if not file.name.endswith(".json") else 0
    files = [*side, *weights]
    return Afar(folder, sum(file.size for file in files), len(files), read)


def _needed(repository: Repository, read: Callable[[RemoteFile], bytes]) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """What a compilation reads, of text and of weights. Raises HubGgufError, HubAnswerError."""
    if (found := needed.gguf_alone(repository.files)) is not None:
        raise HubGgufError(id=repository.id, found=found)
    try:
        return needed.side_files(repository.files), needed.weight_files(repository.files, read)
    except ValueError as error:
        raise HubAnswerError(id=repository.id, endpoint=repository.endpoint, reason=error) from error


def _write_header(repository: Repository, file: RemoteFile, folder: Path) -> int:
    """A file of the right size with the header of the remote one; returns how much of it was fetched."""
    if not file.name.endswith(_SAFETENSORS):
        raise HubWeightsError(id=repository.id, reason=f"{file.name} is no safetensors file, whose header can be read")
    url = repository.url(file.name)
    if file.size < 8:
        raise HubFileError(url=url, reason=f"it has {file.size} bytes")
    start = transfer.part(url, repository.headers, 0, 8)
    length = int.from_bytes(start, "little")
    if length > min(MAX_TABLE_BYTES, file.size - 8):
        raise HubFileError(url=url, reason=f"its header says that it has {length} bytes")
    header = transfer.part(url, repository.headers, 8, 8 + length) if length else b""
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        out.write(start + header)
        out.truncate(file.size)  # the rest takes no room on a disk
    return 8 + length


def _fetch(repository: Repository, file: RemoteFile, store: Path, snapshot: Path, progress: Progress) -> Path:
    """Where the file stands, with the hash that it must have."""
    blob, link = store / "blobs" / file.digest, snapshot / file.name
    if link.is_file() and link.stat().st_size == file.size:
        if transfer.digest_of(file, link, progress.advance) == file.digest:
            return link
        blob.unlink(missing_ok=True)
    if not blob.is_file():
        transfer.download(file, repository.url(file.name), repository.headers, blob, progress.advance)
    link.parent.mkdir(parents=True, exist_ok=True)
    made = link.with_name(f".{link.name}.{os.getpid()}")  # another process may make the link meanwhile
    made.symlink_to(os.path.relpath(blob, link.parent))
    made.replace(link)
    return link


def _store(id: str) -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"
    return Path(cache).expanduser() / f"models--{id.replace('/', '--')}"


def _kept(asked: HubId) -> Path | None:
    """The snapshot of a revision that was fetched before."""
    store, revision = _store(asked.id), asked.revision or "main"
    reference = store / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    found = store / "snapshots" / commit
    return found if found.is_dir() and found.parent == store / "snapshots" else None
