"""The artifact folder: manifest.json, plan.json, weights.safetensors, kernels and tokenizer, checked before use.

`Artifact.open` checks versions, names, sizes and bounds and reads nothing but the small files; it maps nothing and
loads no library. `verify` reads every byte and compares hashes.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.folder import Folder
from dsv3c.runtime.artifact.jsonfile import parse_json
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor, read_header
from dsv3c.runtime.errors import (
    ArtifactMissing,
    FilesDamaged,
    FileSizeWrong,
    FormatNewer,
    HashMismatch,
    ManifestInvalid,
    PathEscapes,
    WeightsInvalid,
)

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
PLAN = "plan.json"
WEIGHTS = "weights.safetensors"

_MANIFEST_LIMIT = 16 << 20
_PLAN_LIMIT = 64 << 20
_FILE_LIMIT = 4 << 30  # of what is read as a whole: kernels, the tokenizer, graphs
_HASH_CHUNK = 4 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]  # file name, bytes hashed of it, its size


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True)
class Level:
    """One kernel library: the CPU flags it requires, and its file name inside the artifact.

    prefill_min_tokens: the smallest step of the entry `prefill` at this level, where it is not the plan's.
    """

    name: str
    requires: tuple[str, ...]
    file: str
    prefill_min_tokens: int | None = None


@dataclass(frozen=True)
class ArtifactTarget:
    name: str
    levels: tuple[Level, ...]


@dataclass(frozen=True)
class Manifest:
    dsv3c_version: str
    model: Mapping[str, Any]
    target: ArtifactTarget
    files: Mapping[str, FileEntry]
    content: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        size: int = self.model["vocab_size"]
        return size


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the number of files and bytes hashed, and files the manifest does not name."""

    files: int
    bytes: int
    extra: tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """A folder whose manifest, plan and weights header fit each other and the files on disk.

    `root` is held open: whatever is read later is of the same folder, not of one that was put in its place. parts: what
    is said of others that run some of its layers.
    """

    root: Folder
    manifest: Manifest
    plan: Plan
    tensors: Mapping[str, Tensor]
    parts: tuple[str, ...] = ()

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Artifact:
        """Check everything but the hashes of the weights. Raises a class of ArtifactFault."""
        root = Folder(folder)
        manifest = read_manifest(root)
        _check_sizes(root, manifest)
        plan_bytes = root.read(PLAN, _PLAN_LIMIT)
        _check_hash(root.path / PLAN, hashlib.sha256(plan_bytes).hexdigest(), manifest.files[PLAN])
        tensors = _read_tensors(root, manifest)
        content = parse_json(plan_bytes, root.path / PLAN)
        plan = parse_plan(content, tensors, manifest.vocab_size, str(root.path / PLAN))
        return Artifact(root, manifest, plan, MappingProxyType(tensors))

    @property
    def folder(self) -> Path:
        return self.root.path

    @property
    def identity(self) -> str:
        """Two artifacts with the same one compute the same rows of the caches from the same tokens, up to rounding."""
        files = [self.manifest.files[name].sha256 for name in (PLAN, WEIGHTS)]
        content = [files, self.manifest.target.name, self.manifest.content["model"], self.parts]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def checked_bytes(self, name: str, limit: int = _FILE_LIMIT) -> bytes:
        """The whole of a file; what was read is what was hashed. Raises HashMismatch, and as `Folder.read`."""
        data = self.root.read(name, limit)
        _check_hash(self.folder / name, hashlib.sha256(data).hexdigest(), self.manifest.files[name])
        return data

    def open_weights(self) -> int:
        """A descriptor of the weights, for the caller to close. Raises FileSizeWrong."""
        return _open_weights(self.root, self.manifest)

    def optional_json(self, name: str) -> dict[str, Any]:
        """Content of an optional JSON object such as generation_config.json; empty when the artifact has none."""
        if name not in self.manifest.files:
            return {}
        data = self.checked_bytes(name, _MANIFEST_LIMIT).removeprefix(codecs.BOM_UTF8)
        content = parse_json(data, self.folder / name)
        if not isinstance(content, dict):
            raise ManifestInvalid(where=name, reason="must be an object")
        return content


def read_manifest(root: Folder) -> Manifest:
    """The checked manifest of an artifact folder."""
    if not root.exists(MANIFEST):
        checkpoint = root.exists("config.json")
        reason = "it is a checkpoint, to be compiled first" if checkpoint else "it has no manifest.json"
        raise ArtifactMissing(path=root.path, reason=reason)
    path = root.path / MANIFEST
    return parse_manifest(parse_json(root.read(MANIFEST, _MANIFEST_LIMIT), path), str(path))


def parse_manifest(content: Any, path: str = MANIFEST) -> Manifest:
    """Checked manifest. Keys that this version does not know are kept in `content` and otherwise ignored."""
    fields = Fields(content, "manifest", ManifestInvalid)
    writer = fields.value.get("dsv3c_version")
    version = fields.integer("format_version", 1, 2**31)
    if version > FORMAT_VERSION:
        raise FormatNewer(path=path, found=version, known=FORMAT_VERSION, writer=writer)
    model = fields.object("model")
    model.integer("vocab_size", 1, 2**31 - 1)
    if "max_position_embeddings" in model.value:
        model.integer("max_position_embeddings", 1, 2**31 - 1)
    files = _files(fields.object("files"))
    target = _target(fields.object("target"), files)
    missing = [name for name in (PLAN, WEIGHTS) if name not in files]
    if missing:
        raise ManifestInvalid(where="manifest.files", reason=f"{missing[0]} is not listed")
    config = MappingProxyType(dict(model.value))
    return Manifest(fields.string("dsv3c_version"), config, target, files, MappingProxyType(dict(fields.value)))


def verify(folder: str | os.PathLike[str], progress: Progress | None = None) -> Verification:
    """Hash every file the manifest names. Raises FilesDamaged that names all which differ."""
    artifact = Artifact.open(folder)
    files = artifact.manifest.files
    damaged = [name for name, entry in files.items() if _hash(artifact.root, name, progress) != entry.sha256]
    if damaged:
        raise FilesDamaged(count=len(damaged), names=", ".join(damaged), damaged=tuple(damaged))
    return Verification(len(files), sum(entry.size for entry in files.values()), _extra_files(artifact))


def _files(fields: Fields) -> Mapping[str, FileEntry]:
    files = {}
    for name in fields.value:
        parts = PurePosixPath(name).parts
        relative = bool(parts) and not PurePosixPath(name).is_absolute() and ".." not in parts
        if not relative or "\\" in name or "\0" in name or ":" in name or str(PurePosixPath(name)) != name:
            raise PathEscapes(name=name)
        if name == MANIFEST:
            raise fields.fail(name, "the manifest cannot list itself")
        entry = fields.object(name)
        sha256 = entry.string("sha256")
        if not _SHA256.fullmatch(sha256):
            raise entry.fail("sha256", "must be 64 lower-case hexadecimal digits")
        files[name] = FileEntry(sha256, entry.integer("size", 0, 2**63 - 1))
    return MappingProxyType(files)


def _target(fields: Fields, files: Mapping[str, FileEntry]) -> ArtifactTarget:
    levels = []
    for i, value in enumerate(fields.list("levels")):
        level = Fields(value, f"{fields.where}.levels[{i}]", fields.fault)
        requires = level.list("requires")
        if not all(isinstance(flag, str) for flag in requires):
            raise level.fail("requires", "must be a list of strings")
        file = level.string("file")
        if file not in files:
            raise level.fail("file", f"{file!r} is not listed in files")
        prefill = level.integer("prefill_min_tokens", 1, 2**31) if "prefill_min_tokens" in level.value else None
        levels.append(Level(level.string("name"), tuple(requires), file, prefill))
    if len({level.name for level in levels}) != len(levels):
        raise fields.fail("levels", "two levels have the same name")
    return ArtifactTarget(fields.string("name"), tuple(levels))


def _check_sizes(root: Folder, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        _check_size(root.path / name, root.status(name).st_size, entry)


def _check_size(path: Path, actual: int, entry: FileEntry) -> None:
    if actual != entry.size:
        raise FileSizeWrong(path=path, actual=actual, expected=entry.size)


def _open_weights(root: Folder, manifest: Manifest) -> int:
    descriptor = root.open(WEIGHTS)
    try:
        _check_size(root.path / WEIGHTS, os.fstat(descriptor).st_size, manifest.files[WEIGHTS])
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _read_tensors(root: Folder, manifest: Manifest) -> dict[str, Tensor]:
    descriptor = _open_weights(root, manifest)
    try:
        return read_header(descriptor)
    except OSError as error:
        raise WeightsInvalid(where="header", reason=str(error)) from error
    finally:
        os.close(descriptor)


def _check_hash(path: Path, actual: str, entry: FileEntry) -> None:
    if actual != entry.sha256:
        raise HashMismatch(path=path, actual=actual, expected=entry.sha256)


def _hash(root: Folder, name: str, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with os.fdopen(root.open(name), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(name, done, size)
    return digest.hexdigest()


def _extra_files(artifact: Artifact) -> tuple[str, ...]:
    found = []
    for folder, _, names in os.walk(artifact.folder):
        base = Path(folder).relative_to(artifact.folder)
        found += [(base / name).as_posix() for name in names]
    return tuple(sorted(set(found) - set(artifact.manifest.files) - {MANIFEST}))
