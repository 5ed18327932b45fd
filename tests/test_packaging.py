"""What a user installs: the wheel is complete, and the command answers before anything heavy is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtime", "targets")
PACKAGE_DATA = ("*.c", "*.h", "py.typed")
HEAVY = ("tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "transformers", "numpy", "tokenizers", "jinja2", "rich")


def setuptools_version() -> int:
    try:
        return int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if setuptools_version() < 77:
        pytest.skip("building a wheel needs setuptools>=77: pip install -e '.[dev]'")
    # From a copy: a build in the tree leaves build/lib, from which deleted modules come back.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(source / "dist"), str(source)]
    subprocess.run(command, check=True)
    (built,) = (source / "dist").glob("dsv3c-*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_every_module_and_its_data(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for pattern in ("*.py", *PACKAGE_DATA):
        for folder in FOLDERS:
            expected = {f"dsv3c/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob(pattern)}
            assert expected - names == set()
    assert not [name for name in names if name.startswith("dsv3c/tests") or not name.startswith("dsv3c")]


def test_wheel_states_version_licence_and_command(wheel: zipfile.ZipFile) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = f"dsv3c-{project['version']}.dist-info"
    text = wheel.read(f"{info}/METADATA").decode()
    assert f"Version: {project['version']}\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert "dsv3c = dsv3c.compiler.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


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


def test_runtime_loads_nothing_of_the_compiler() -> None:
    script = (
        "import sys\n"
        "import dsv3c.runtime\n"
        "dsv3c.runtime.load\n"
        "banned = {'tvm', 'onnx', 'onnxruntime', 'ml_dtypes', 'torch', 'safetensors', 'rich'}\n"
        "ours = ('dsv3c.compiler', 'dsv3c.passes', 'dsv3c.targets')\n"
        "wrong = [m for m in sys.modules if m.startswith(ours) or m.split('.')[0] in banned]\n"
        "sys.exit(f'loaded: {wrong}' if wrong else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
