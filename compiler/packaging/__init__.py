"""One archive with all that a device needs to run an artifact: the artifact, the runtime, its packages, `run.sh`.

<name>/run.sh             what a user starts
<name>/install.py         unpacks the wheels beside `run.sh` when it first runs
<name>/package.json       what the device must be, and which wheels
<name>/requirements.txt   the packages besides the runtime, with version and hash
<name>/wheels/            the runtime's wheel and, unless left out, those of its packages
<name>/model/             the artifact
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dsv3c.compiler.driver.workplace import MAKING, put, sweep, workplace
from dsv3c.compiler.errors import Dsv3cError, ForeignFileError, OutputExistsError
from dsv3c.compiler.packaging import archive, wheels
from dsv3c.compiler.packaging.archive import ArchiveFile
from dsv3c.compiler.packaging.platforms import PLATFORMS, WheelPlatform, platform_of
from dsv3c.runtime.artifact.artifact import MANIFEST, Artifact
from dsv3c.runtime.progress import Progress

FOLDER = Path(__file__).parent
SCRIPTS = {"run.sh": True, "install.py": False}  # name: executable
FIRST = "install.py"  # of the names in an archive, which are sorted
SUFFIXES = (".tar.gz", ".tar")
_RESERVE = 1 << 20  # bytes of an archive beside its files: headers, padding


class ArchiveNameError(Dsv3cError):
    message = "{path} does not end in .tar.gz or .tar"
    hint = "name the archive so; .tar is not compressed, which suits large models: weights hardly get smaller"


class NotEnoughSpaceError(Dsv3cError):
    message = "the archive needs {needed} bytes, {folder} has {free} free"
    hint = "make room, or write to another disk with -o"


class WrongPlatformError(Dsv3cError):
    message = "{artifact} is compiled for {built}, not for {platform}"
    hint = "leave --platform out, or compile for that platform"


@dataclass(frozen=True)
class PackageReport:
    """archive: the file, of `size` bytes. model_bytes: of the artifact. wheels: file names, the runtime's first.

    python: its version on the device, major and minor.
    """

    archive: Path
    size: int
    model_bytes: int
    wheels: tuple[str, ...]
    wheel_bytes: int
    platform: str
    python: str
    notes: tuple[str, ...] = ()


def package(
    folder: Path,
    out: Path | None,
    platform: str | None,
    python: str,
    progress: Progress,
    *,
    with_wheels: bool,
    overwrite: bool,
    extras: Sequence[str] = (),
) -> PackageReport:
    """Write the archive of an artifact; files are streamed and their hashes compared on the way.

    out: None takes <artifact>-<platform>.tar.gz beside the artifact. platform: a name in PLATFORMS, None for what the
    artifact was compiled for. with_wheels: False leaves the packages to pip on the device. extras: of the runtime,
    whose packages are taken along. Nothing is left behind when it fails or is interrupted.

    Raises a RuntimeFault for a broken artifact, and Dsv3cError subclasses: of this module, of `wheels`,
    OutputExistsError, ForeignFileError, UnwritableOutputError.
    """
    artifact = Artifact.open(folder)
    goal = _platform(artifact, platform)
    out = out or artifact.folder.with_name(f"{artifact.folder.name}-{goal.name}.tar.gz")
    name = _stem(out)
    place = Path(os.path.realpath(out))
    if os.path.lexists(place):
        _check_archive(place)
        if not overwrite:
            raise OutputExistsError(path=out)
    left = sweep(place, Path.unlink)
    with tempfile.TemporaryDirectory(prefix="dsv3c-package-") as scratch, _writing(place, overwrite) as file:
        progress.stage("building the runtime's wheel")
        runtime = wheels.build_runtime(Path(scratch) / "runtime")
        progress.stage(f"downloading wheels for {goal.name}, Python {python}")
        needed = wheels.download(Path(scratch) / "wheels", _requirements(artifact, extras), goal.tags, python)
        bundled = (runtime, *needed) if with_wheels else (runtime,)
        entries = [*_fixed(goal, python, runtime, needed, with_wheels), *_wheels(bundled), *_model(artifact)]
        total = sum(entry.size for entry in entries)
        _require_space(out, total + _RESERVE)
        progress.stage(f"writing {out.name}", total)
        archive.write(file, name, entries, compressed=out.suffix == ".gz", advance=progress.advance)
        return PackageReport(
            archive=out,
            size=file.tell(),
            model_bytes=sum(entry.size for entry in artifact.manifest.files.values()),
            wheels=tuple(path.name for path in bundled),
            wheel_bytes=sum(path.stat().st_size for path in bundled),
            platform=goal.name,
            python=python,
            notes=left,
        )


def _requirements(artifact: Artifact, extras: Sequence[str]) -> list[str]:
    target = artifact.manifest.target.name.partition(":")[0]
    return wheels.requirements(target, artifact.manifest.content["target"].get("provider"), extras)


def _platform(artifact: Artifact, wanted: str | None) -> WheelPlatform:
    built = platform_of(artifact.manifest.target)
    chosen = PLATFORMS[wanted] if wanted else built or WheelPlatform.here()
    if built is not None and chosen != built:
        raise WrongPlatformError(artifact=artifact.folder, built=built.name, platform=chosen.name)
    return chosen


def _stem(out: Path) -> str:
    """The name of the archive's one folder."""
    suffix = next((suffix for suffix in SUFFIXES if out.name.endswith(suffix)), None)
    if suffix is None or out.name == suffix:
        raise ArchiveNameError(path=out)
    return out.name.removesuffix(suffix)


def _fixed(
    platform: WheelPlatform, python: str, runtime: Path, needed: Sequence[Path], with_wheels: bool
) -> Iterator[ArchiveFile]:
    """What is neither wheel nor model."""
    pins = {path.name: _sha256(path) for path in sorted(needed)}
    facts = {
        "system": platform.system,
        "machine": platform.machine,
        "glibc": platform.glibc,
        "python": python,
        "runtime": {runtime.name: _sha256(runtime)},
        "packages": pins,
        "bundled": with_wheels,
    }
    lines = [f"{wheels.requirement_of(name)} --hash=sha256:{digest}\n" for name, digest in pins.items()]
    yield ArchiveFile.of_text("package.json", json.dumps(facts, indent=1) + "\n")
    yield ArchiveFile.of_text("requirements.txt", "".join(lines))
    for name, executable in SCRIPTS.items():
        yield ArchiveFile(name, FOLDER / name, (FOLDER / name).stat().st_size, executable=executable)


def _wheels(paths: Sequence[Path]) -> Iterator[ArchiveFile]:
    for path in paths:
        yield ArchiveFile(f"wheels/{path.name}", path, path.stat().st_size)


def _model(artifact: Artifact) -> Iterator[ArchiveFile]:
    """The files that the manifest names, and it; what else lies in the folder is not part of the artifact."""
    manifest = artifact.folder / MANIFEST
    yield ArchiveFile(f"model/{MANIFEST}", manifest, manifest.stat().st_size)
    for name, file in artifact.manifest.files.items():
        yield ArchiveFile(f"model/{name}", artifact.folder / name, file.size, file)


def _require_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise NotEnoughSpaceError(needed=needed, folder=out.parent, free=free)


@contextmanager
def _writing(out: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A temporary file beside `out` that becomes `out` when the body ends well and is removed when it does not.

    Raises OutputExistsError, ForeignFileError, UnwritableOutputError.
    """
    with workplace(out) as folder:
        with (folder / MAKING).open("wb") as file:
            yield file
        (folder / MAKING).chmod(0o644)
        put(folder, out, overwrite, _check_archive, Path.unlink)


def _check_archive(path: Path) -> None:
    """Raises ForeignFileError for what is none of these archives: their first file is known."""
    first = None
    if path.is_file():
        damaged = suppress(tarfile.TarError, OSError, EOFError, ValueError, zlib.error)
        with damaged, tarfile.open(path) as archive:
            first = archive.next()
    if first is None or PurePosixPath(first.name).parts[1:] != (FIRST,):
        raise ForeignFileError(path=path, kind="an archive of `dsv3c package`")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
