"""The native library cross-compiled for ARM and run on emulated CPUs, against the Python runtime there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cpu.native import write_native
from dsv3c.targets.link.platforms import ARM_MACOS
from tests.conftest import BUNDLED_MODEL
from tests.targets.arm import emulator
from tests.targets.arm.make_root import EMULATOR

CPUS = {"cortex-a72": "armv8.0", "cortex-a76": "armv8.2-dotprod", "max": "armv8.6"}
PYTHON = """
import sys
import numpy as np
import dsv3c.runtime
from dsv3c.runtime.engine.session import Request
with dsv3c.runtime.load(sys.argv[1], threads=2) as model:
    prompt = model.tokenizer.encode("Once upon a time")
    sequence, feed, rows = model.new_sequence(), prompt, []
    for _ in range(5):
        request = Request(sequence, model.session.tokens(feed), "last")
        rows.append(model.session.run([request])[0][0])
        feed = [int(rows[-1].argmax())]
    np.save(sys.argv[2], rows)
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "arm"
    compile_checkpoint(BUNDLED_MODEL, out, CompileOptions(target="arm", emit=("native",)))
    return out


def run(cpu: str, artifact: Path, *arguments: str, level: str = "") -> subprocess.CompletedProcess[str]:
    variables = ["-E", f"DSV3C_ISA={level}"]
    program = [str(artifact / "native" / "dsv3c-run"), *arguments, str(artifact)]
    command = [EMULATOR, "-cpu", cpu, "-L", str(emulator.ROOT), *variables, *program]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.needs("arm", "arm_linker")
@pytest.mark.parametrize("cpu", CPUS)
def test_logits_are_those_of_the_python_runtime(cpu: str, artifact: Path, tmp_path: Path) -> None:
    path = emulator.link_runtime(tmp_path / "packages")
    done = emulator.run(cpu, path, "-c", PYTHON, str(artifact), str(tmp_path / "python.npy"))
    assert done.returncode == 0, done.stderr[-2000:]
    options = ("-p", "Once upon a time", "--temperature", "0", "-n", "5", "-j", "2", "--json")
    done = run(cpu, artifact, *options, "--logits", str(tmp_path / "logits"))
    assert done.returncode == 0, done.stderr
    report, rows = json.loads(done.stdout), np.fromfile(tmp_path / "logits", np.float32).reshape(5, -1)
    assert np.array_equal(rows, np.load(tmp_path / "python.npy"))
    assert report["token_ids"] == rows.argmax(axis=1).tolist()
    assert report["level"] == CPUS[cpu]


@pytest.mark.needs("arm", "arm_linker")
def test_a_level_above_the_cpu_is_refused(artifact: Path) -> None:
    done = run("cortex-a72", artifact, "--ids", "1", level="armv8.2-dotprod")
    message = "dsv3c-run: the CPU lacks asimddp, which the level armv8.2-dotprod needs\n"
    assert (done.returncode, done.stderr) == (1, message)


@pytest.mark.needs("arm_linker")
@pytest.mark.thorough  # zig makes its stubs of the system first
def test_it_links_for_macos(artifact: Path, tmp_path: Path) -> None:
    """From the tables of another system: none of the sources depends on it. Nothing here can run the result."""
    for name in ("plan.json", "manifest.json", "weights.safetensors", "tokenizer.json", "kernels"):
        (tmp_path / name).symlink_to(artifact / name)
    assert write_native(tmp_path, ARM_MACOS) == ()
    for name in ("libdsv3c_model.dylib", "dsv3c-run"):
        assert (tmp_path / "native" / name).read_bytes().startswith(b"\xcf\xfa\xed\xfe")  # Mach-O, 64 bit
