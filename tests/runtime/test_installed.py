"""The distribution dsv3c-runtime in an environment of its own, as pip installs it."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

import dsv3c.runtime
from dsv3c.compiler.packaging import wheels
from tests.runtime.test_stored_artifacts import STORED, VERSIONS, runs_here

STORED_MODEL = STORED / f"v{VERSIONS[-1]}"
BANNED = ("tvm", "onnx", "onnxruntime", "torch", "safetensors", "rich", "ml_dtypes", "setuptools", "dsv3c.compiler")
GENERATE = """
import json, sys
import numpy as np
import dsv3c.runtime

folder = sys.argv[1]
stored = np.load(folder + "/expected.npz")
with dsv3c.runtime.load(folder + "/model", threads=1) as model:
    found = model.generate(stored["tokens"], temperature=0, max_new_tokens=stored["greedy"].size, ignore_eos=True)
print(json.dumps({"tokens": list(found.token_ids), "modules": sorted(sys.modules)}))
"""

# Thorough: pip installs the runtime into an environment of its own.
pytestmark = [pytest.mark.usefixtures("package_index"), pytest.mark.thorough]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, package_index: None) -> Path:
    """The folder with the commands of an environment that has the runtime and what it needs."""
    folder = tmp_path_factory.mktemp("runtime")
    wheel = wheels.build_runtime(folder / "dist")
    venv.create(folder / "venv", with_pip=True)
    commands = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [commands / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True)
    return commands


def test_pip_installs_no_compiler(environment: Path, tmp_path: Path) -> None:
    script = "from importlib import metadata; print(*(found.metadata['Name'] for found in metadata.distributions()))"
    command = [environment / "python", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = set(done.stdout.lower().split())
    assert {"dsv3c-runtime", "apache-tvm-ffi", "numpy", "tokenizers"} <= names
    assert not names & {"apache-tvm", "onnx", "onnxruntime", "torch", "safetensors", "rich", "dsv3c"}


def test_the_command_is_there(environment: Path) -> None:
    done = subprocess.run([environment / "dsv3c-runtime", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dsv3c-runtime {dsv3c.runtime.__version__}\n"
    command = [environment / "dsv3c-runtime", "verify", STORED_MODEL / "model"]
    assert ": ok, " in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.isa("avx2", "fma", "f16c", "bmi2")
@pytest.mark.skipif(runs_here() is not None, reason=str(runs_here()))
def test_it_generates(environment: Path, tmp_path: Path) -> None:
    command = [environment / "python", "-c", GENERATE, STORED_MODEL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["tokens"] == np.load(STORED_MODEL / "expected.npz")["greedy"].tolist()
    assert not [name for name in found["modules"] if name in BANNED]
