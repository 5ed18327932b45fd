"""What all tests share: golden texts, which tests are run, the bundled model."""

from __future__ import annotations

import difflib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from tests import selection
from tests.selection import (  # noqa: F401  hooks of pytest
    pytest_collection_modifyitems,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.shared import once

TESTS = Path(__file__).parent
GOLDENS = TESTS / "goldens"
BUNDLED_MODEL = TESTS.parent / "artifacts" / "models" / "fairytale-10m"

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What a command is ended by, and what Python does with it by itself.
ENDING = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}


def heed_signals() -> None:
    """In a child before it starts: what ends a command counts there, although a shell's background jobs ignore Ctrl-C,
    and nohup ignores hangups, this process too."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def heeded_signals() -> Iterator[None]:
    """The same in this process, for a test."""
    before = {number: signal.signal(number, handler) for number, handler in ENDING.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files from what the tests produce")
    selection.pytest_addoption(parser)


class Golden:
    """Compares texts with the files stored under tests/goldens/<path of the test>/<name of the test>.txt."""

    def __init__(self, stem: Path, update: bool) -> None:
        self.stem = stem
        self.update = update

    def check(self, text: str, part: str = "") -> None:
        """Fails with a diff unless `text` equals the stored one; `part` names one of several texts of a test."""
        path = self.stem.with_name(self.stem.name + (f".{part}" if part else "") + ".txt")
        text = text if text.endswith("\n") else text + "\n"
        name = path.relative_to(TESTS.parent)
        if self.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"{name} does not exist; make it with: pytest --update-golden", pytrace=False)
        stored = path.read_text(encoding="utf-8")
        if stored == text:
            return
        diff = difflib.unified_diff(stored.splitlines(), text.splitlines(), str(name), "this run", lineterm="", n=2)
        hint = "if the new text is right: pytest --update-golden"
        pytest.fail("\n".join([f"{name} differs", *diff, "", hint]), pytrace=False)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    folder = GOLDENS / request.path.relative_to(TESTS).with_suffix("")
    name = re.sub(r"[^\w.=-]+", "_", request.node.name).strip("_")
    return Golden(folder / name, request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def bundled_model() -> Path:
    """The folder of the bundled checkpoint."""
    return BUNDLED_MODEL


@pytest.fixture(scope="session")
def bundled_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of the bundled checkpoint's artifact in a weight format for a target, made once for all processes.

    For x86 it has the levels that this CPU runs, and the native library beside what others use.
    """

    def artifact(quant: str, target: str = "x86") -> Path:
        name = f"bundled/{target.replace(':', '-')}/{quant}"
        return once(tmp_path_factory, name, lambda out: compiled(out, quant, target))

    def compiled(out: Path, quant: str, target: str) -> None:
        from dsv3c.compiler.driver.pipeline import compile_checkpoint
        from dsv3c.compiler.options import CompileOptions
        from dsv3c.targets.x86 import levels

        emit = ("native",) if target == "x86" else ()
        usable = tuple(level for level in levels.LEVELS if not level.missing(cpu_flags()))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(levels, "LEVELS", usable or levels.LEVELS)
            compile_checkpoint(BUNDLED_MODEL, out, CompileOptions(target=target, quant=quant, emit=emit))

    return artifact


@pytest.fixture
def kernels_for_this_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling for x86 builds kernels of the best level that runs here: a fifth of the work."""
    from dsv3c.targets.x86 import levels

    usable = [level for level in levels.LEVELS if not level.missing(cpu_flags()) and permitted(level.requires)]
    monkeypatch.setattr(levels, "LEVELS", tuple(usable[-1:]))


@pytest.fixture(scope="session")
def package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips tests that install packages where pip reaches no index."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    folder = str(tmp_path_factory.mktemp("index"))
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, "click"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip reaches no index of packages: {done.stderr.strip().rpartition(chr(10))[2]}")


@pytest.fixture(scope="session")
def gpp() -> None:
    """For tests of GPU kernels that are compiled for the CPU."""
