"""Bytes over HTTP: parts of files, and whole files that go on where they broke off and are checked by their hash."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from dsv3c.compiler.checkpoint.hub.errors import HubFileError, HubInterruptedError, HubStoreError
from dsv3c.compiler.checkpoint.hub.repository import RemoteFile

Advance = Callable[[int], None]
_CHUNK = 1 << 20
_TIMEOUT = 60.0
_TRIES = 4  # without a byte in between
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To other addresses of HTTP alone; a token stays with the host that it is for."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise HubFileError(url=req.full_url, reason=f"it leads to {newurl[:200]!r}")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None and old.netloc != new.netloc:
            found.remove_header("Authorization")
        return found


_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Redirects(),
):
    _OPENER.add_handler(_handler)


def part(url: str, headers: Mapping[str, str], begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file. Raises HubFileError unless the answer is just these."""
    try:
        with _open(url, headers, begin, end) as answer:
            data: bytes = answer.read(end - begin + 1)
    except (OSError, http.client.HTTPException) as error:
        raise HubFileError(url=url, reason=_said(error)) from error
    if len(data) != end - begin:
        raise HubFileError(url=url, reason=f"of bytes {begin} to {end} it gave {len(data)}")
    return data


def download(file: RemoteFile, url: str, headers: Mapping[str, str], place: Path, advance: Advance) -> None:
    """Fetch a file, which gets to `place` once its size and hash are right. What came of it before is gone on with.

    Raises HubFileError, after which nothing of it is there, and HubInterruptedError and HubStoreError, after which what
    came stays. Of two processes one waits for what the other fetches.
    """
    begun = place.with_name(f"{place.name}.begun")
    while not place.is_file():
        begun.touch()
        with begun.open("r+b", buffering=0) as out:
            _lock(out)
            if not _is_still(out, begun):
                continue
            try:
                digest = _fetch(file, url, headers, out, advance)
                if digest != file.digest:
                    raise HubFileError(url=url, reason=f"its hash is {digest}, the hub says {file.digest}")
            except HubFileError:
                begun.unlink(missing_ok=True)
                raise
            begun.replace(place)
            return
    advance(file.size)


def _lock(file: BinaryIO) -> None:
    """Wait for other processes to leave the file; some file systems know no such thing."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_still(file: BinaryIO, path: Path) -> bool:
    """Whether it was not taken away while this process waited for it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def digest_of(file: RemoteFile, path: Path, advance: Advance) -> str:
    """Of what stands in `path`, in the way that the hub has the hash of `file`."""
    digest = _hash(file)
    with path.open("rb") as stored:
        while chunk := stored.read(_CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


class _Begun:
    """What came of a file so far: written, counted and hashed."""

    def __init__(self, file: RemoteFile, out: BinaryIO, advance: Advance) -> None:
        """With what `out` holds of it already."""
        self.size, self.done = file.size, 0
        self._digest, self._out, self._advance = _hash(file), out, advance
        while self.done < self.size and (chunk := out.read(min(_CHUNK, self.size - self.done))):
            self._digest.update(chunk)
            self.done += len(chunk)
        out.seek(self.done)
        out.truncate()
        advance(self.done)

    def append(self, chunk: bytes) -> None:
        _keep(self._out, chunk)
        self._digest.update(chunk)
        self.done += len(chunk)
        self._advance(len(chunk))

    def digest(self) -> str:
        return self._digest.hexdigest()


def _fetch(file: RemoteFile, url: str, headers: Mapping[str, str], out: BinaryIO, advance: Advance) -> str:
    """What is missing of a file in `out`. Gives the hash of all of it."""
    begun, failures, reason = _Begun(file, out, advance), 0, ""
    while begun.done < begun.size and failures < _TRIES:
        before = begun.done
        reason = _go_on(begun, url, headers)
        failures = 0 if begun.done > before else failures + 1
    if begun.done < begun.size:
        raise HubInterruptedError(url=url, done=begun.done, size=begun.size, reason=reason)
    return begun.digest()


def _go_on(begun: _Begun, url: str, headers: Mapping[str, str]) -> str:
    """Ask once for what is missing. Gives why no more came; raises HubFileError where asking again would not help."""
    try:
        with _open(url, headers, begun.done, begun.size) as answer:
            while chunk := answer.read(min(_CHUNK, begun.size - begun.done + 1)):
                if begun.done + len(chunk) > begun.size:
                    raise HubFileError(url=url, reason=f"it has more than its {begun.size} bytes")
                begun.append(chunk)
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise HubFileError(url=url, reason=_said(error)) from error
        return _said(error)
    except (OSError, http.client.HTTPException) as error:
        return _said(error)
    return "the answer ended"


def _keep(out: BinaryIO, data: bytes) -> None:
    """Raises HubStoreError: what cannot be written is no fault of the network, and asking again would not help."""
    try:
        left = memoryview(data)
        while left:
            left = left[out.write(left) :]
    except OSError as error:
        raise HubStoreError(path=out.name, reason=error.strerror) from error


def _open(url: str, headers: Mapping[str, str], begin: int, end: int) -> Any:
    """An answer with the bytes [begin, end) of a file. Raises HubFileError for one with others, OSError."""
    request = urllib.request.Request(url, headers={**headers, "Range": f"bytes={begin}-{end - 1}"})
    answer = _OPENER.open(request, timeout=_TIMEOUT)
    if answer is None:
        raise HubFileError(url=url, reason="its address is none of HTTP")
    if answer.status == 200 and begin == 0:
        return answer
    found = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
    if answer.status == 206 and found is not None and (int(found[1]), int(found[2])) == (begin, end - 1):
        return answer
    answer.close()
    gave = answer.headers.get("Content-Range") or f"an answer {answer.status}"
    raise HubFileError(url=url, reason=f"asked for bytes {begin}-{end - 1} it gave {gave[:100]!r}")


def _hash(file: RemoteFile) -> _Hash:
    if len(file.digest) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # as git names a file


def _said(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answers {error.code} {error.reason}"[:200]
    return str(getattr(error, "reason", None) or error)[:200] or type(error).__name__
