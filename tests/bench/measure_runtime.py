"""How large the runtime is when installed, and how long it takes to import: `python -m tests.bench.measure_runtime`.

Builds the wheel and installs it twice into new folders: with all that pip thinks it needs, and with what the archives
of `dsv3c package` hold. Needs the network. Sizes are what files take on disk, before any module is compiled to
bytecode; times are of whole processes, started with bytecode there.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from dsv3c.compiler.packaging import wheels
from dsv3c.compiler.packaging.platforms import WheelPlatform
from dsv3c.runtime.cli.output import columns, size

RUNS = 20
PACKAGES = "dsv3c.runtime.model, dsv3c.runtime.devices.cpu.device as cpu, tokenizers, jinja2; cpu._import_tvm_ffi()"
STATEMENTS = {
    "python alone": "pass",
    "import dsv3c.runtime": "import dsv3c.runtime",
    "import dsv3c.runtime.cli": "import dsv3c.runtime.cli",
    "and numpy, tokenizers, jinja2, tvm_ffi": f"import dsv3c.runtime.cli, {PACKAGES}",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = wheels.build_runtime(folder / "dist")
        by_pip, by_archive = installed_by_pip(folder / "pip", wheel), installed_by_archive(folder / "archive", wheel)
        print(f"{wheel.name}: {size(wheel.stat().st_size)}\n")
        report(by_pip, "pip install dsv3c-runtime")
        report(by_archive, "dsv3c package")
        print(f"time of a process, the least and the median of {RUNS}")
        rows = [(name, *least_and_median(found)) for name, found in times(by_archive).items()]
        print("\n".join(f"  {line}" for line in columns(rows)))


def installed_by_pip(into: Path, wheel: Path) -> Path:
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(into), str(wheel)]
    subprocess.run(command, check=True)
    return into


def installed_by_archive(into: Path, wheel: Path) -> Path:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = wheels.download(into.with_name("wheels"), wheels.requirements("x86"), WheelPlatform.here().tags, python)
    for path in (wheel, *needed):
        with zipfile.ZipFile(path) as file:
            file.extractall(into)
    return into


def report(site: Path, title: str) -> None:
    """Bytes on disk of each package, the largest first."""
    sizes: dict[str, int] = {}
    for path in site.iterdir():
        name = path.name.removesuffix(".py").removesuffix(".libs")
        if not name.endswith((".dist-info", "bin")):
            sizes[name] = sizes.get(name, 0) + on_disk(path)
    total = on_disk(site)
    print(f"{title}: {size(total)} in {len(list(site.glob('*.dist-info')))} packages")
    rows = [(name, size(nbytes)) for name, nbytes in sorted(sizes.items(), key=lambda item: -item[1])]
    print("\n".join(f"  {line}" for line in columns(rows)), end="\n\n")


def on_disk(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def times(site: Path) -> dict[str, list[float]]:
    """Seconds of Python processes that run each statement in turn, with `site` and the standard library alone."""
    environment = {"PATH": os.defpath, "PYTHONPATH": str(site)}
    python = shutil.which(Path(sys.executable).name, path=f"{sys.base_prefix}/bin") or sys.executable
    found: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for number in range(RUNS + 1):
        for name, statement in STATEMENTS.items():
            began = time.perf_counter()
            subprocess.run([python, "-s", "-c", statement], env=environment, check=True)
            if number:  # the first one writes bytecode
                found[name].append(time.perf_counter() - began)
    return found


def least_and_median(seconds: list[float]) -> tuple[str, str]:
    return f"{min(seconds) * 1e3:.0f} ms", f"{statistics.median(seconds) * 1e3:.0f} ms"


if __name__ == "__main__":
    main()
