"""Makes a folder with Debian's Python for arm64 and what the runtime needs, to be run by qemu's user emulation.

`python -m tests.targets.arm.make_root FOLDER` needs apt-get of Debian and the network, changes nothing of the system's
packages but for qemu-user-static, which it installs where it is missing, and does nothing when the folder is complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

EMULATOR = "qemu-aarch64-static"
# tvm_ffi is C++; the rest of the system comes as dependencies of Python.
SYSTEM = ("python3", "libstdc++6")
# Of the runtime, and what those need in turn. Versions are those of this interpreter's own.
PACKAGES = ("numpy", "apache-tvm-ffi", "typing_extensions", "tokenizers", "jinja2", "markupsafe", "click")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
APT = """
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache";
"""


def main(folder: Path) -> None:
    install_emulator()
    stamp = folder / "complete"
    wanted = "\n".join([*SYSTEM, *requirements()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"making {folder}: Python for arm64")
    shutil.rmtree(folder, ignore_errors=True)
    unpack_system(folder)
    python = os.readlink(folder / "usr" / "bin" / "python3")  # python3.11 in Debian 12
    install_packages(folder, python.removeprefix("python"))
    stamp.write_text(wanted)


def install_emulator() -> None:
    if shutil.which(EMULATOR):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"no {EMULATOR}: install qemu-user-static")
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", "qemu-user-static"], check=True)


def requirements() -> list[str]:
    return [f"{name}=={metadata.version(name)}" for name in PACKAGES]


def unpack_system(folder: Path) -> None:
    """apt on a state of its own, in which nothing is installed yet, so that it names every dependency."""
    state = (folder / "apt").resolve()
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    config = state / "apt.conf"
    config.write_text(APT.format(state=state))
    environment = os.environ | {"APT_CONFIG": str(config)}
    download = ["install", "--download-only", "--no-install-recommends", "-y", *SYSTEM]
    for arguments in (["update"], download):
        subprocess.run(["apt-get", "-qq", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    shutil.rmtree(state)


def install_packages(folder: Path, version: str) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", "install"]
    platforms = [option for name in PLATFORMS for option in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", version, "--implementation", "cp", *platforms]
    subprocess.run([*pip, *options, "--target", str(folder / "site"), *requirements()], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
