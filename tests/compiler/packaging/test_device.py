"""An archive with the real wheels, unpacked in an empty folder and run there by a Python that has nothing installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from dsv3c import runtime
from dsv3c.compiler import cli
from tests.checkpoints import write_tokenizer
from tests.runtime.test_stored_artifacts import STORED, VERSIONS, runs_here

PROMPT = "Once upon a time"
ARGUMENTS = ("-p", PROMPT, "-n", "12", "--temperature", "0", "--json", "-j", "1")
PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")

pytestmark = [
    pytest.mark.needs("tar"),
    pytest.mark.isa("avx2", "fma", "f16c", "bmi2"),
    pytest.mark.skipif(runs_here() is not None, reason=str(runs_here())),
    pytest.mark.usefixtures("package_index"),
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored artifact, with a tokenizer."""
    folder = Path(shutil.copytree(STORED / f"v{VERSIONS[-1]}" / "model", tmp_path_factory.mktemp("artifact") / "tiny"))
    manifest = json.loads((folder / "manifest.json").read_text())
    write_tokenizer(folder, manifest["model"]["vocab_size"])
    content = (folder / "tokenizer.json").read_bytes()
    manifest["files"]["tokenizer.json"] = {"sha256": sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def expected(artifact: Path) -> list[int]:
    with runtime.load(artifact, threads=1) as model:
        return list(model.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids)


def unpacked(artifact: Path, folder: Path, *options: str) -> Path:
    """The archive's one folder, unpacked by tar."""
    out = folder / "packed" / "tiny.tar.gz"
    assert cli.run(["package", str(artifact), "-o", str(out), *options]) == 0
    subprocess.run(["tar", "-xf", str(out), "-C", str(folder)], check=True)
    shutil.rmtree(out.parent)
    (found,) = folder.iterdir()
    return found


def offline() -> list[str]:
    """The start of a command line that takes the network away, where that is allowed."""
    command = ["unshare", "--net"]
    allowed = shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode
    return command if allowed else []


def run(command: list[str], folder: Path) -> str:
    """Run with an environment that has nothing of this one."""
    environment = {
        "PATH": os.defpath,
        "PYTHON": str(PYTHON),
        "HOME": str(folder),
        "PIP_CERT": os.environ.get("PIP_CERT", ""),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_without_network(artifact: Path, expected: list[int], tmp_path: Path) -> None:
    alone = subprocess.run([PYTHON, "-c", "import dsv3c.runtime"], cwd=tmp_path, capture_output=True, check=False)
    assert alone.returncode == 1, "the interpreter must not have the runtime already"
    folder = unpacked(artifact, tmp_path)
    for _ in ("installs", "is installed"):
        report = json.loads(run([*offline(), str(folder / "run.sh"), *ARGUMENTS], tmp_path))
        assert report["token_ids"] == expected
    assert json.loads(run([str(folder / "run.sh"), "verify", "--json"], tmp_path))["extra"] == []


def test_without_wheels_pip_installs_them(artifact: Path, expected: list[int], tmp_path: Path) -> None:
    folder = unpacked(artifact, tmp_path, "--no-wheels")
    assert [path.suffix for path in (folder / "wheels").iterdir()] == [".whl"]
    report = json.loads(run([str(folder / "run.sh"), *ARGUMENTS], tmp_path))
    assert report["token_ids"] == expected
