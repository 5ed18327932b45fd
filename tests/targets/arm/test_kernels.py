"""The kernels of every ARM level against numpy, on an emulated CPU that has this level and no higher one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build
from tests.targets.arm import emulator
from tests.targets.cases import attention, dense, float_codes, moe, sparse
from tests.targets.cpu.harness import arguments, tolerance_at
from tests.targets.libraries import build_library
from tests.targets.op_tests import Case, OpTests

pytestmark = pytest.mark.needs("arm", "arm_linker")

# Sizes of which the others are enough: a library takes as long to build as it has kernels.
LEFT_OUT = re.compile(
    r"linear-(float|bfloat|int8-g|int4-g\d+-).*-n272|absorbed-.*-h(1|4|17)$|materialized-(float32-c|int8-g64|f32-h)|(topk|sparse)-f32-(all|just|pages)"
)
ALL = dense.CASES | moe.CASES | attention.ROUNDED | float_codes.ROUNDED | sparse.CASES
CASES = {name: case for name, case in ALL.items() if not LEFT_OUT.match(name)}


@pytest.fixture(scope="module")
def results(level: IsaLevel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, emulator.Arrays]:
    """The operands of every case after its call, by role: one library, one process."""
    folder: Path = tmp_path_factory.mktemp(level.name)
    kernels = {spec: f"kernel_{i}" for i, spec in enumerate(dict.fromkeys(case[0] for case in CASES.values()))}
    library = build_library({name: build(spec, level) for spec, name in kernels.items()}, level, folder / "kernels.so")
    calls = [(kernels[spec], arguments(spec, inputs)) for spec, inputs, _, _ in CASES.values()]
    return dict(zip(CASES, emulator.call_kernels(emulator.CPUS[level.name], library, calls, folder), strict=True))


@dataclass(frozen=True)
class Emulated:
    """What was computed on the emulated CPU."""

    level: IsaLevel
    results: Mapping[str, emulator.Arrays]

    def runs(self, name: str, case: Case) -> Iterator[emulator.Arrays]:
        yield self.results[name]

    def tolerance(self, case: Case) -> float:
        return tolerance_at(self.level, case)


class TestArmKernels(OpTests):
    cases = CASES

    @pytest.fixture
    def backend(self, level: IsaLevel, results: Mapping[str, emulator.Arrays]) -> Emulated:
        return Emulated(level, results)
