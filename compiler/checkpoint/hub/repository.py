"""A repository on a hub: its files, their sizes and hashes, at one commit."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.gguf import is_gguf
from dsv3c.compiler.checkpoint.hub.errors import (
    HubAccessError,
    HubAnswerError,
    HubPackageError,
    HubRevisionError,
    HubUnreachableError,
)

HUB = "https://huggingface.co"
_ID = re.compile(r"(?P<id>\w[\w.-]{0,95}/\w[\w.-]{0,95})(@(?P<revision>\w[\w./-]{0,200}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_SIZE = 1 << 48
_MAX_FILES = 1 << 16
_TIMEOUT = 30.0


@dataclass(frozen=True)
class HubId:
    id: str
    revision: str | None

    @classmethod
    def parse(cls, path: Path) -> HubId | None:
        """What is written as an id, ORG/NAME or ORG/NAME@REVISION, and is no path of anything that is there, or of a
        GGUF file."""
        match = _ID.fullmatch(str(path))
        is_path = os.path.lexists(path) or is_gguf(path)
        return None if match is None or is_path else cls(match["id"], match["revision"])


@dataclass(frozen=True)
class RemoteFile:
    """digest: SHA-256 where the file is stored in LFS, else git's SHA-1 of it, by their lengths."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Repository:
    """commit: what `revision` was when it was asked for. headers: of each request, a token among them."""

    id: str
    commit: str
    endpoint: str
    headers: Mapping[str, str]
    files: Mapping[str, RemoteFile]

    @classmethod
    def ask(cls, asked: HubId) -> Repository:
        """Raises HubError."""
        where = endpoint()
        try:
            from huggingface_hub import HfApi, errors, get_token
        except ImportError as error:
            raise HubPackageError(id=asked.id, endpoint=where) from error
        try:
            api = HfApi(endpoint=where)
            info = api.model_info(asked.id, revision=asked.revision, files_metadata=True, timeout=_TIMEOUT)
        except errors.RevisionNotFoundError as error:
            raise HubRevisionError(id=asked.id, revision=asked.revision) from error
        except errors.GatedRepoError as error:
            raise HubAccessError(id=asked.id, endpoint=where, reason="it is gated") from error
        except errors.RepositoryNotFoundError as error:
            reason = "it does not exist, or is private"
            raise HubAccessError(id=asked.id, endpoint=where, reason=reason) from error
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                raise HubAccessError(id=asked.id, endpoint=where, reason=f"it answers {status}") from error
            raise HubUnreachableError(id=asked.id, endpoint=where, reason=f"it answers {status}") from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:  # what goes wrong on a network has the classes of the package's HTTP client
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise HubUnreachableError(id=asked.id, endpoint=where, reason=reason) from error
        token = get_token()
        headers = {"User-Agent": "dsv3c", **({"Authorization": f"Bearer {token}"} if token else {})}
        try:
            return cls(asked.id, _commit(info.sha), where, headers, _files(info.siblings))
        except ValueError as error:
            raise HubAnswerError(id=asked.id, endpoint=where, reason=error) from error

    def url(self, name: str) -> str:
        return f"{self.endpoint}/{self.id}/resolve/{self.commit}/{urllib.parse.quote(name)}"


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def _commit(value: Any) -> str:
    if not isinstance(value, str) or not _COMMIT.fullmatch(value):
        raise ValueError(f"its commit is {quote(value)}")
    return value


def _files(siblings: Any) -> dict[str, RemoteFile]:
    if not isinstance(siblings, list) or len(siblings) > _MAX_FILES:
        raise ValueError("it has no list of files, or one without end")
    found = (_file(each) for each in siblings if _is_plain(each.rfilename))
    return {file.name: file for file in found}


def _is_plain(name: Any) -> bool:
    """Whether it can be a file in a folder of ours. Others are of no use: nothing asks for them."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name or ":" in name:
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/")


def _file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    size, digest = (sibling.size, sibling.blob_id) if lfs is None else (lfs.size, lfs.sha256)
    if type(size) is not int or not 0 <= size < _MAX_SIZE:
        raise ValueError(f"{quote(sibling.rfilename)} has {quote(size)} bytes")
    if not isinstance(digest, str) or not (_COMMIT if lfs is None else _SHA256).fullmatch(digest):
        raise ValueError(f"{quote(sibling.rfilename)} has the hash {quote(digest)}")
    return RemoteFile(sibling.rfilename, size, digest)
