"""Objects of compiled kernels, kept in a folder from one compilation to the next.

A file holds the object of one kernel. Its name is the sha256 of all that the object is made from: the kernel as TVM
would read it back, with every constant and all LLVM IR that it imports; LLVM's target; the versions and the code that
compile it. In front of the object stands the sha256 of name and object, so a file that was damaged, cut short or given
another name is compiled anew. Files come by a rename and never change, so processes share a folder without locks.
Whoever can write there decides what code an artifact has, as with the compiler itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tvm
from tvm.target import codegen

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.cpu import library
from dsv3c.targets.cpu.isa import IsaLevel

_DIGEST_BYTES = 32
_TEMPORARY = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{8}\.tmp")
_STALE_SECONDS = 3600.0  # what writes one takes milliseconds


class KernelCacheError(Dsv3cError):
    message = "compiled kernels cannot be kept in {path}: {reason}"
    hint = "name another folder with --cache-dir, or leave the option out: the artifact is the same without"


@dataclass(frozen=True)
class ObjectCache:
    """compiler: what compiles, as text; objects of another one are not taken."""

    folder: Path
    compiler: str

    @classmethod
    def at(cls, folder: Path) -> ObjectCache:
        """The folder, which is made if need be. What killed processes left half written is removed.

        Raises KernelCacheError for one that cannot be written: whoever names it counts on it, and should not learn of
        a wrong path by waiting.
        """
        with _told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            tempfile.TemporaryFile(dir=folder).close()
        return cls(folder, _compiler())

    def compile_object(self, functions: Mapping[str, Any], level: IsaLevel, path: Path) -> Path:
        """As `library.compile_object`, which is asked for what is not there. Raises KernelCacheError."""
        module = library.module_of(functions)
        key = self._key(module, level)
        found = self._stored(key)
        if found is None:
            library.compile_object(functions, level, path)
            self._store(key, path.read_bytes())
            return path
        library.show(module, level)
        path.write_bytes(found)
        return path

    def _key(self, module: Any, level: IsaLevel) -> str:
        parts = (self.compiler, str(library.tvm_target(level)), tvm.ir.save_json(module))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _stored(self, key: str) -> bytes | None:
        try:
            content = (self.folder / key).read_bytes()
        except OSError:
            return None
        digest, code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return code if digest == _digest(key, code) else None

    def _store(self, key: str, code: bytes) -> None:
        temporary = self.folder / f"{key}.{secrets.token_hex(4)}.tmp"
        with _told(self.folder):
            try:
                temporary.write_bytes(_digest(key, code) + code)
                os.replace(temporary, self.folder / key)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def _compiler() -> str:
    """What decides about an object besides the kernel and the target. Without a platform of its own a target is for the
    system that LLVM takes for this one."""
    versions = (version("dsv3c"), tvm.__version__, version("apache-tvm-ffi"), codegen.llvm_version_major())
    source = hashlib.sha256(Path(library.__file__).read_bytes()).hexdigest()
    return "\n".join(map(str, (*versions, codegen.llvm_get_system_triple(), source)))


def _sweep(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process renamed or removed it meanwhile
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KernelCacheError(path=folder, reason=error.strerror or error) from error
