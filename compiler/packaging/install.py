"""Puts the packages of an archive into a folder that PYTHONPATH can name: `python install.py SITE`.

Runs on the device with nothing but the standard library. Wheels that the archive holds are unpacked, which takes
neither pip nor a network; those that it does not hold are installed by pip.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FACTS = "package.json"
FILES = "installed.txt"  # in the folder of the packages: what was put there
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def main(site: Path) -> None:
    facts = json.loads((HERE / FACTS).read_text(encoding="utf-8"))
    require(facts)
    if foreign(site):
        sys.exit(f"{site} holds something else; set SITE to another folder, or move it away")
    print(f"installing the runtime into {site}", file=sys.stderr)
    try:
        site.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{site.name}.", dir=site.parent))
    except OSError as error:
        sys.exit(f"cannot write to {site.parent}: {error.strerror}; set SITE to another folder")
    try:
        made = work / "made"
        made.mkdir()
        fill(made, facts)
        shutil.copyfile(HERE / FACTS, made / FACTS)
        (made / FILES).write_text("".join(f"{name}\n" for name in files_of(made)), encoding="utf-8")
        replace(site, made, work / "old")
    except OSError as error:
        sys.exit(f"cannot write {site}: {error.strerror}; make room, or set SITE to another folder")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def foreign(site: Path) -> bool:
    """Whether anything is there that was not installed here; what Python writes when it imports does not count."""
    if not os.path.lexists(site) or (site.is_dir() and not any(site.iterdir())):
        return False
    try:
        known = set((site / FILES).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return True
    return FACTS not in known or not known.issuperset({*files_of(site)} - {FILES})


def files_of(folder: Path) -> list[str]:
    """The files below a folder, links too, by relative path."""
    found = []
    for inner, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(inner, name))]
        if os.path.basename(inner) == "__pycache__":
            names = [name for name in names if not name.endswith(".pyc")]
        found += [Path(inner, name).relative_to(folder).as_posix() for name in [*names, *links]]
    return sorted(found)


def replace(site: Path, made: Path, old: Path) -> None:
    """Put the new folder in place. Onto a folder that is not empty, none can be renamed."""
    made.chmod(0o755)
    try:
        if site.is_dir() and any(site.iterdir()):
            site.rename(old)
        made.rename(site)
    except OSError:
        if old.exists() and not site.exists():
            old.rename(site)
        if foreign(site):
            raise  # else another first run was faster


def require(facts: dict[str, Any]) -> None:
    """Leaves with a message unless this is what the wheels are for."""
    machine = platform.machine().lower()
    found = f"{sys.platform} on {MACHINES.get(machine, machine)}"
    wanted = f"{facts['system']} on {facts['machine']}"
    if found != wanted:
        sys.exit(f"this archive is for {wanted}, this machine is {found}")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != facts["python"]:
        hint = f"set PYTHON to another interpreter, or make an archive with: dsv3c package --python {python}"
        sys.exit(f"this archive is for Python {facts['python']}, {sys.executable or 'this'} is Python {python}; {hint}")
    if not facts["glibc"]:
        return
    name, version = platform.libc_ver()
    if name != "glibc" or numbers(version) < numbers(facts["glibc"]):
        found = f"{name or 'another C library'} {version}".strip()
        sys.exit(f"this archive needs glibc {facts['glibc']} or newer, this system has {found}")


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def fill(folder: Path, facts: dict[str, Any]) -> None:
    bundled = facts["packages"] if facts["bundled"] else {}
    for wheel, digest in {**facts["runtime"], **bundled}.items():
        unpack(HERE / "wheels" / wheel, digest, folder)
    if facts["bundled"]:
        return
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
    if subprocess.run([*command, "--requirement", str(HERE / "requirements.txt")]).returncode:
        sys.exit("pip could not install requirements.txt; make an archive that has the wheels: dsv3c package --wheels")


def unpack(wheel: Path, digest: str, folder: Path) -> None:
    try:
        with wheel.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
    except OSError as error:
        sys.exit(f"cannot read {wheel}: {error.strerror}; copy the archive again")
    if not whole:
        sys.exit(f"{wheel} is damaged; copy the archive again")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]).absolute())
