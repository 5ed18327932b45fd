"""The bundled model on two memory nodes that are made up: the same bits as on one, in both runtimes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.x86 import levels
from tests.conftest import BUNDLED_MODEL
from tests.targets.cpu.harness import lacking
from tests.targets.cpu.test_announced import two_nodes

IDS = [1, 17, 42, 5, 99, 3, 7]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its libraries find a node near each half of the CPUs that are here."""
    usable = [level for level in levels.LEVELS if not lacking(level)]
    if not usable or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs of a level")
    folder = tmp_path_factory.mktemp("divided")
    two_nodes(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CC", f'cc -DSYSTEM_ROOT="{folder}"')
        patch.setattr(levels, "LEVELS", tuple(usable[-1:]))
        compile_checkpoint(BUNDLED_MODEL, folder / "out", CompileOptions(quant="int4-g32", emit=("native",)))
    return folder / "out"


def test_python(artifact: Path) -> None:
    found = {}
    for numa, nodes in (("off", 1), ("auto", 2)):
        with runtime.load(artifact, threads=4, numa=numa) as model:
            assert model.report()["nodes"] == nodes
            answer = model.generate(IDS, max_new_tokens=24, temperature=0, ignore_eos=True)
            found[numa] = (model.logits(IDS), answer.token_ids)
    assert np.array_equal(found["off"][0], found["auto"][0])
    assert found["off"][1] == found["auto"][1]


def test_native_program(artifact: Path, tmp_path: Path) -> None:
    found = []
    for numa in ("off", "auto"):
        ids, logits = ",".join(map(str, IDS)), tmp_path / numa
        options = ["-n", "24", "-j", "4", "--ignore-eos", "--temperature", "0", "--numa", numa, "--logits", str(logits)]
        command = [str(artifact / "native" / "dsv3c-run"), "--ids", ids, *options]
        subprocess.run(command, check=True, capture_output=True)
        found.append(np.fromfile(logits, np.float32))
    assert found[0].size and np.array_equal(*found)
