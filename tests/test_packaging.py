"""What a user installs: both wheels are complete, and the command answers before anything heavy is loaded."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import dsv3c.runtime
from dsv3c.compiler.packaging import wheels
from tests.test_structure import FOLDERS, ROOT, sources

PAGE = ("*.html", "*.css", "*.js", "*.svg")
PACKAGE_DATA = ("*.c", "*.h", "*.sh", "py.typed", *PAGE)
RUNTIME_DATA = tuple(f"dsv3c/runtime/{name}" for name in ("pyproject.toml", "README.md", "LICENSE"))
RUNTIME_NEEDS = {"apache-tvm-ffi", "click", "jinja2", "numpy", "tokenizers"}
HEAVY = ("tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "transformers", "numpy", "tokenizers", "jinja2", "rich")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Of the distribution dsv3c."""
    # From a copy: a build in the tree leaves build/lib, from which deleted modules come back.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "build", "*.so"))
    shutil.copytree(ROOT / "artifacts" / "tuning", source / "artifacts" / "tuning")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(source / "dist"), str(source)]
    subprocess.run(command, check=True)
    (built,) = (source / "dist").glob("dsv3c-*.whl")
    return zipfile.ZipFile(built)


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Of the distribution dsv3c-runtime."""
    return zipfile.ZipFile(wheels.build_runtime(tmp_path_factory.mktemp("runtime") / "dist"))


def files(wheel: zipfile.ZipFile, folder: str) -> dict[str, bytes]:
    return {name: wheel.read(name) for name in wheel.namelist() if name.startswith(folder)}


def metadata_of(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_string(wheel.read(name).decode())


def test_wheel_holds_every_module_and_its_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for pattern in ("*.py", *PACKAGE_DATA):
        expected = {f"dsv3c/{path.relative_to(ROOT)}" for path in sources(*FOLDERS, pattern=pattern)}
        assert expected - names == set()
    assert set(RUNTIME_DATA) <= names
    records = {f"dsv3c/artifacts/tuning/{path.name}" for path in (ROOT / "artifacts" / "tuning").glob("*.json")}
    assert records == {name for name in names if name.startswith("dsv3c/artifacts/")} != set()
    assert not [name for name in names if name.startswith("dsv3c/tests") or not name.startswith("dsv3c")]


def test_runtime_wheel_holds_the_runtime_and_nothing_else(runtime_wheel: zipfile.ZipFile) -> None:
    found = {name for name in runtime_wheel.namelist() if ".dist-info/" not in name}
    modules = {f"dsv3c/{path.relative_to(ROOT)}" for path in sources("runtime")}
    page = {f"dsv3c/{path.relative_to(ROOT)}" for pattern in PAGE for path in sources("runtime", pattern=pattern)}
    assert found == modules | page | {"dsv3c/runtime/py.typed", *RUNTIME_DATA}
    assert "dsv3c/runtime/server/page/index.html" in page


def test_both_wheels_hold_the_same_runtime(wheel: zipfile.ZipFile, runtime_wheel: zipfile.ZipFile) -> None:
    assert files(wheel, "dsv3c/runtime/") == files(runtime_wheel, "dsv3c/runtime/")


def test_an_installed_dsv3c_builds_the_same_runtime(
    wheel: zipfile.ZipFile, runtime_wheel: zipfile.ZipFile, tmp_path: Path
) -> None:
    """`dsv3c package` needs no checkout."""
    wheel.extractall(tmp_path / "site")
    script = "from pathlib import Path; from dsv3c.compiler.packaging import wheels\n"
    script += "print(wheels.source(), wheels.build_runtime(Path('dist')))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    source, built = done.stdout.split()
    assert Path(source) == tmp_path / "site" / "dsv3c" / "runtime"
    assert (tmp_path / built).read_bytes() == Path(str(runtime_wheel.filename)).read_bytes()


def test_wheels_state_version_licence_and_command(wheel: zipfile.ZipFile, runtime_wheel: zipfile.ZipFile) -> None:
    commands = {wheel: "dsv3c = dsv3c.compiler.cli:main", runtime_wheel: "dsv3c-runtime = dsv3c.runtime.cli:main"}
    for built, command in commands.items():
        metadata = metadata_of(built)
        assert metadata["Version"] == dsv3c.runtime.__version__
        assert metadata["License-Expression"] == "Apache-2.0"
        (entry_points,) = (name for name in built.namelist() if name.endswith("entry_points.txt"))
        assert command in built.read(entry_points).decode()
        assert [name for name in built.namelist() if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_compiler_installs_what_the_runtime_needs(wheel: zipfile.ZipFile, runtime_wheel: zipfile.ZipFile) -> None:
    ours, all_ = (set(metadata_of(built).get_all("Requires-Dist", [])) for built in (runtime_wheel, wheel))
    needed = {line for line in ours if "extra ==" not in line}
    assert {re.split(r"[^\w-]", line)[0] for line in needed} == RUNTIME_NEEDS
    assert needed <= all_


@pytest.mark.parametrize("args", [[], ["compile"], ["generate"], ["targets"]], ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    script = (
        "import sys\n"
        "from dsv3c.compiler.cli import run\n"
        f"code = run({[*args, '--help']!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else code)\n"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    print(f"dsv3c {' '.join(args)} --help: {time.perf_counter() - began:.2f} s")
    assert done.returncode == 0, done.stderr
    assert "Usage: dsv3c" in done.stdout
