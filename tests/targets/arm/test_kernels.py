"""The kernels of every ARM level against numpy, on an emulated CPU that has this level and no higher one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.library import build_library
from tests.targets.arm import emulator
from tests.targets.cpu import test_attention_kernels, test_dense_kernels, test_moe_kernels
from tests.targets.cpu.harness import arguments, compare

pytestmark = pytest.mark.needs("arm", "arm_linker")

MODULES = (test_dense_kernels, test_moe_kernels, test_attention_kernels)
# Sizes of which the others are enough: a library takes as long to build as it has kernels.
LEFT_OUT = re.compile(
    r"linear-(float|bfloat|int8-g|int4-g\d+-).*-n272|absorbed-.*-h(1|4|17)$|materialized-(float32-c|int8-g64|f32-h)"
)
CASES = {name: case for module in MODULES for name, case in module.CASES.items() if not LEFT_OUT.match(name)}


@pytest.fixture(scope="module")
def results(level: IsaLevel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, emulator.Arrays]:
    """The operands of every case after its call, by role: one library, one process."""
    folder: Path = tmp_path_factory.mktemp(level.name)
    kernels = {spec: f"kernel_{i}" for i, spec in enumerate(dict.fromkeys(case[0] for case in CASES.values()))}
    library = build_library({name: build(spec, level) for spec, name in kernels.items()}, level, folder / "kernels.so")
    calls = [(kernels[spec], arguments(spec, inputs)) for spec, inputs, _, _ in CASES.values()]
    return dict(zip(CASES, emulator.call_kernels(emulator.CPUS[level.name], library, calls, folder), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(level: IsaLevel, results: Mapping[str, emulator.Arrays], name: str) -> None:
    spec, inputs, expected, tolerance = CASES[name]
    if level.dot2 and isinstance(spec, MlaAbsorbed | MlaMaterialized) and spec.paging.element == "bf16":
        tolerance = test_attention_kernels.ROUNDED
    compare(results[name], inputs, expected, tolerance)
