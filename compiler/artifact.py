"""Writing an artifact folder: everything into a temporary neighbour, then one rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv3c.compiler.errors import NotAnArtifactError, OutputExistsError, UnwritableOutputError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Copied as they are in the checkpoint.
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
_CHUNK = 1 << 22


def check_free(out: Path, overwrite: bool) -> None:
    """Raises OutputExistsError when `out` exists, NotAnArtifactError when it may be replaced but is none."""
    if not out.exists():
        return
    if not overwrite:
        raise OutputExistsError(path=out)
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise NotAnArtifactError(path=out)


@contextmanager
def writing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the body ends well and is removed when it does not.

    Errors as for `check_free`, and UnwritableOutputError, at once, before any work.
    """
    check_free(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise UnwritableOutputError(path=out.parent, reason=error.strerror) from error
    try:
        yield temporary
        _replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, out: Path) -> None:
    """Put the finished folder in place. An old artifact is moved aside first, so that `out` is never half of each."""
    temporary.chmod(0o755)
    if not out.exists():
        os.rename(temporary, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    old = aside / out.name
    os.rename(out, old)
    try:
        os.rename(temporary, out)
    except BaseException:
        os.rename(old, out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def copy_side_files(source: Path, target: Path) -> None:
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file below `folder` but the manifest, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(_sha256, files))
    return {
        path.relative_to(folder).as_posix(): {"sha256": digest, "size": path.stat().st_size}
        for path, digest in zip(files, digests, strict=True)
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
