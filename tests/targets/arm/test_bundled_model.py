"""The bundled model compiled for ARM, on emulated CPUs: the reference's tokens in float32, x86's when quantised."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.errors import WrongMachine
from dsv3c.targets.x86 import levels as x86
from tests.conformance.runs import relative_error
from tests.conftest import BUNDLED_MODEL
from tests.targets.arm import emulator

pytestmark = [pytest.mark.needs("arm", "arm_linker"), pytest.mark.isa("avx2")]

ROUNDED = ("int8", "int4-g32")
QUANTS = ("float32", *ROUNDED)
CPUS = {"cortex-a72": "armv8.0", "cortex-a76": "armv8.2-dotprod", "neoverse-n1": "armv8.2-dotprod", "max": "armv8.6"}
GREEDY = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))["greedy_ids"]
TOKENS = {"float32": len(GREEDY), "int8": 8, "int4-g32": 8}  # later ones of rounded models may fall either way
SCRIPT = str(Path(__file__).with_name("run_models.py"))

Found = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def artifacts(bundled_artifact: Callable[..., Path]) -> Path:
    """A folder of artifacts for ARM, named by their weight format."""
    (folder,) = {bundled_artifact(quant, "arm").parent for quant in QUANTS}
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What x86's lowest level computes, which like most of ARM's multiplies no bfloat16."""
    folder = tmp_path_factory.mktemp("x86")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(x86, "LEVELS", x86.LEVELS[:1])
        for quant in ROUNDED:
            compile_checkpoint(BUNDLED_MODEL, folder / quant, CompileOptions(quant=quant))
    command = [sys.executable, SCRIPT, *arguments(folder, folder, ROUNDED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    return results(done, folder)


@pytest.fixture(scope="module", params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(cpu: str, artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the artifacts compute on an emulated CPU: one process for all."""
    folder = tmp_path_factory.mktemp(cpu)
    path = emulator.link_runtime(folder / "packages")
    return results(emulator.run(cpu, path, SCRIPT, *arguments(artifacts, folder, QUANTS)), folder)


def arguments(artifacts: Path, folder: Path, quants: Sequence[str]) -> list[str]:
    reference = str(BUNDLED_MODEL / "reference_logits.npz")
    return [reference, str(folder), *(f"{TOKENS[quant]}:{artifacts / quant}" for quant in quants)]


def results(done: subprocess.CompletedProcess[str], folder: Path) -> Found:
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: line | dict(np.load(folder / f"{line['name']}.npz")) for line in lines}


def test_the_level_is_the_cpus(cpu: str, found: Found) -> None:
    assert {result["level"] for result in found.values()} == {CPUS[cpu]}


def test_float32_writes_the_reference_tokens(found: Found) -> None:
    assert found["float32"]["tokens"] == GREEDY


def test_float32_gives_the_reference_logits(found: Found) -> None:
    reference = np.load(BUNDLED_MODEL / "reference_logits.npz")["logits"]
    assert relative_error(found["float32"]["reference"], reference) <= 1e-4


@pytest.mark.parametrize("quant", ROUNDED)
def test_quantised_models_agree_with_x86(quant: str, found: Found, expected: Found) -> None:
    """Activations between two codes may fall to either side: bounds as in tests/test_bundled_model.py."""
    ours, theirs = found[quant], expected[quant]
    assert ours["tokens"] == theirs["tokens"]
    errors = np.abs(ours["single"] - theirs["single"]).max(axis=1) / np.abs(theirs["single"]).max()
    assert np.mean(errors <= 1e-5) >= 0.8
    assert np.max(errors) <= 0.1


def test_a_level_above_the_cpu_is_refused(artifacts: Path, tmp_path: Path) -> None:
    path = emulator.link_runtime(tmp_path)
    load = ["-c", f"import dsv3c.runtime; dsv3c.runtime.load({str(artifacts / 'int8')!r})"]
    done = emulator.run("cortex-a72", path, *load, environment={"DSV3C_ISA": "armv8.2-dotprod"})
    assert done.returncode == 1
    assert "kernel level armv8.2-dotprod needs the CPU features asimddp, which this CPU lacks" in done.stderr


def test_an_arm_artifact_is_refused_on_x86(artifacts: Path) -> None:
    with pytest.raises(WrongMachine, match="compiled for aarch64, this machine is x86_64"):
        runtime.load(artifacts / "int8")
