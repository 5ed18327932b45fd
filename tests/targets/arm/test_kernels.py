"""The kernels of every ARM level against numpy, on an emulated CPU that has this level and no higher one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.targets.arm.levels import LEVELS
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.library import build_library
from dsv3c.targets.cpu.platforms import ARM_LINUX
from tests.targets.arm import emulator
from tests.targets.cpu import test_attention_kernels, test_dense_kernels, test_moe_kernels
from tests.targets.cpu.harness import arguments, compare

pytestmark = emulator.needs_emulator

MODULES = (test_dense_kernels, test_moe_kernels, test_attention_kernels)
CASES = {name: case for module in MODULES for name, case in module.CASES.items()}
CPUS = {"armv8.0": "cortex-a72", "armv8.2-dotprod": "cortex-a76", "armv8.6": "max"}

Arrays = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=LEVELS, ids=lambda level: level.name)
def level(request: pytest.FixtureRequest) -> IsaLevel:
    return replace(request.param, platform=ARM_LINUX)


@pytest.fixture(scope="module")
def results(level: IsaLevel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Arrays]:
    """The operands of every case after its call, by role: one library, one process."""
    folder: Path = tmp_path_factory.mktemp(level.name)
    kernels = {spec: f"kernel_{i}" for i, spec in enumerate(dict.fromkeys(case[0] for case in CASES.values()))}
    library = build_library({name: build(spec, level) for spec, name in kernels.items()}, level, folder / "kernels.so")
    given = {name: arguments(spec, inputs) for name, (spec, inputs, _, _) in CASES.items()}
    calls = [[i, kernels[CASES[name][0]], list(arrays)] for i, (name, arrays) in enumerate(given.items())]
    (folder / "calls.json").write_text(json.dumps(calls), encoding="utf-8")
    np.savez(folder / "in.npz", **flat(given))
    script = str(Path(__file__).with_name("call_kernels.py"))
    files = [str(folder / name) for name in ("calls.json", "in.npz", "out.npz")]
    done = emulator.run(CPUS[level.name], folder, script, str(library), *files)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "out.npz") as found:
        return {
            name: {role: found[f"{i}.{role}"] for role in arrays} for i, (name, arrays) in enumerate(given.items())
        }


def flat(given: Mapping[str, Arrays]) -> dict[str, Any]:
    return {f"{i}.{role}": array for i, arrays in enumerate(given.values()) for role, array in arrays.items()}


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(results: Mapping[str, Arrays], name: str) -> None:
    _, inputs, expected, tolerance = CASES[name]
    compare(results[name], inputs, expected, tolerance)
