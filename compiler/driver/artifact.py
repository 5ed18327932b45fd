"""Writing an artifact folder: everything into a temporary neighbour, then one step that puts it in place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from dsv3c.compiler.driver import journal
from dsv3c.compiler.driver.journal import WEIGHTS, Run
from dsv3c.compiler.driver.workplace import MAKING, put, workplace
from dsv3c.compiler.driver.workplace import sweep as workplace_sweep
from dsv3c.compiler.errors import (
    NotAnArtifactError,
    OutputExistsError,
    OutputNameError,
    UnwritableOutputError,
    WrittenWrongError,
)
from dsv3c.runtime.artifact.artifact import MANIFEST, Artifact
from dsv3c.runtime.artifact.jsonfile import read_json
from dsv3c.runtime.errors import RuntimeFault

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What a path of an artifact must be, and what is wrong otherwise.
_NAMES: Mapping[str, Callable[[str], bool]] = {
    "it is not UTF-8": lambda path: path.encode("utf-8", errors="replace") == os.fsencode(path),
    "it has a control character, such as a line break": lambda path: not _CONTROL.search(path),
}
_MANIFEST_LIMIT = 16 << 20


def check_free(out: Path, overwrite: bool) -> None:
    """Raises NotAnArtifactError when `out` is something that is never replaced, OutputExistsError when it could be,
    OutputNameError for a path that not all of what reads artifacts can open, UnwritableOutputError for a place that
    nothing can be put into."""
    unfit = next((reason for reason, fits in _NAMES.items() if not fits(str(_place(out)))), None)
    if unfit is not None:
        raise OutputNameError(path=ascii(str(out)), reason=unfit)
    if not os.path.lexists(out):
        return
    if _place(out).is_symlink():
        raise UnwritableOutputError(path=out, reason="it is a link that leads to itself")
    if out.exists():  # else a link to nothing, which says where to write
        check_replaceable(out)
    if not overwrite:
        raise OutputExistsError(path=out)
    if out.is_mount():
        raise UnwritableOutputError(path=out, reason="it is a mount point, which cannot be replaced")


def check_replaceable(folder: Path) -> None:
    """Raises NotAnArtifactError unless it is an empty folder, or an artifact with nothing in it that is not its own."""
    if not folder.is_dir():
        raise NotAnArtifactError(path=folder, reason="it is no folder")
    if any(folder.iterdir()):
        _own_files(folder)


def remove(folder: Path) -> None:
    """Remove an artifact or an empty folder: the files that its manifest names, and never another.

    The manifest goes last, so that what an interrupted removal leaves is still known as an artifact. Raises as
    `check_replaceable`, and OSError for a file that appeared meanwhile.
    """
    check_replaceable(folder)
    if any(folder.iterdir()):
        found = _own_files(folder)
        for path in found:
            if not path.is_symlink() and path.is_dir():
                path.rmdir()
            elif path != folder / MANIFEST:
                path.unlink()
        (folder / MANIFEST).unlink()
    folder.rmdir()


def _own_files(folder: Path) -> list[Path]:
    """All that is in the folder, what a folder holds before it. Raises NotAnArtifactError for what is not its own."""
    try:
        manifest = read_json(folder / MANIFEST, _MANIFEST_LIMIT)
    except RuntimeFault as error:
        reason = str(error).partition("\n")[0] if os.path.lexists(folder / MANIFEST) else f"it has no {MANIFEST}"
        raise NotAnArtifactError(path=folder, reason=reason) from error
    fields = manifest if isinstance(manifest, dict) else {}
    table = fields.get("files")
    ours = type(fields.get("format_version")) is int and isinstance(fields.get("dsv3c_version"), str)
    if not ours or not isinstance(table, dict) or not all(_is_entry(entry) for entry in table.values()):
        raise NotAnArtifactError(path=folder, reason=f"its {MANIFEST} is of something else")
    known = frozenset(table) | {MANIFEST}
    inside = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    found = list(_walk(folder))
    for path in sorted(found):
        name = path.relative_to(folder).as_posix()
        if name not in (inside if path.is_dir() and not path.is_symlink() else known):
            raise NotAnArtifactError(path=folder, reason=f"it holds {name}, which is not part of the artifact")
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("size")) is int


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder, a folder behind what it holds; links are not followed."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        yield path


@contextmanager
def writing(out: Path, overwrite: bool, begun: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the body ends well and is removed when it does not.

    A link is followed. begun: what an interrupted run left, to be gone on with: of it the weights are there already.
    Errors as for `check_free`, before any work and again in the end, and UnwritableOutputError.
    """
    check_free(out, overwrite)
    place = _place(out)
    with workplace(place, begun) as folder:
        making = folder / MAKING
        making.mkdir(exist_ok=folder == begun)
        _clear(making)
        yield making
        making.chmod(0o755)
        put(folder, place, overwrite, check_replaceable, remove)


def check_loads(folder: Path, target: str) -> None:
    """Open what was written as the runtime does before it maps weights or loads a library: versions, names, sizes, the
    header of the weights, every index and bound of the plan. Raises WrittenWrongError."""
    try:
        Artifact.open(folder)
    except RuntimeFault as fault:
        reason = str(fault).partition("\n")[0].replace(f"{folder.resolve()}{os.sep}", "")
        raise WrittenWrongError(target=target, reason=reason) from fault


def _clear(making: Path) -> None:
    """Leave of an interrupted run its weights alone."""
    for path in making.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != WEIGHTS:
            path.unlink()


def interrupted(out: Path, run: Run, restart: bool) -> Path | None:
    """As `journal.interrupted`; a link is followed."""
    return journal.interrupted(_place(out), run, restart)


def sweep(out: Path, kept: Path | None = None) -> tuple[str, ...]:
    """Remove what compilations into `out` left behind when they were killed, but for what is gone on with; returns
    notes of what has to stay."""
    return workplace_sweep(_place(out), remove, kept)


def _place(out: Path) -> Path:
    return Path(os.path.realpath(out))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode("utf-8", errors="replace"))  # names of files may be no UTF-8


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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
