"""Members of the family compiled for ARM, on emulated CPUs: the logits of transformers that are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from tests.conformance.cases import PROMPTS, Array, make_case
from tests.conformance.runs import relative_error
from tests.conftest import GOLDENS
from tests.targets.arm import emulator

pytestmark = [pytest.mark.needs("arm", "arm_linker"), pytest.mark.thorough]

# One for each thing that a member has besides: names and YaRN; a norm behind experts; scaled queries; a scaled stream
# and LongRoPE; zero experts.
MEMBERS = (
    "kimi-k25-yarn",
    "axk1-grouped-yarn",
    "mistral4-scaled-queries",
    "minicpm3-longrope",
    "longcat-zero-experts",
)
STEP = 16  # so that a prompt takes several steps
LIMIT = 1e-4

Found = Mapping[str, tuple[Array, ...]]


@pytest.fixture(scope="module", params=emulator.CPUS)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The logits of all, from one process on an emulated CPU that has the level and none above it."""
    level, folder = str(request.param), tmp_path_factory.mktemp(str(request.param))
    for name in MEMBERS:
        with np.load(GOLDENS / "conformance" / f"{name}.npz") as file:
            case = make_case(name, json.loads(str(file["config"])), int(file["seed"]))
        options = CompileOptions(quant="float32", target=f"arm:levels={level}", max_tokens=STEP, max_rows=STEP)
        compile_checkpoint(case.write(folder / f"{name}-checkpoint"), folder / name, options)
        np.savez(folder / f"{name}.npz", **{f"tokens.{index}": ids for index, ids in enumerate(case.sequences)})
    script = str(Path(__file__).with_name("run_sequences.py"))
    packages = emulator.link_runtime(folder / "packages")
    artifacts = [str(folder / name) for name in MEMBERS]
    done = emulator.run(emulator.CPUS[level], packages, script, str(folder), str(min(PROMPTS)), *artifacts)
    assert done.returncode == 0, done.stderr[-4000:]
    assert {json.loads(line)["level"] for line in done.stdout.splitlines()} == {level}
    return {name: _logits(folder / f"{name}.out.npz") for name in MEMBERS}


def _logits(path: Path) -> tuple[Array, ...]:
    with np.load(path) as file:
        return tuple(file[f"logits.{index}"] for index in range(len(file.files)))


@pytest.mark.parametrize("name", MEMBERS)
def test_logits_are_those_of_transformers(name: str, found: Found) -> None:
    with np.load(GOLDENS / "conformance" / f"{name}.npz") as file:
        for index, logits in enumerate(found[name]):
            assert relative_error(logits[file[f"rows.{index}"]], file[f"logits.{index}"]) <= LIMIT
