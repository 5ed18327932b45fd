"""The levels this CPU runs, and the kernels of a test module at each of them."""

from pathlib import Path

import pytest

from dsv3c.runtime.cpu_features import cpu_flags
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.harness import Kernels


@pytest.fixture(scope="session", params=LEVELS, ids=lambda level: level.name)
def level(request):
    if missing := request.param.missing(cpu_flags()):
        pytest.skip(f"this CPU lacks {', '.join(missing)}")
    return request.param


@pytest.fixture(scope="module")
def kernels(request, level, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp(level.name)
    return Kernels(request.module.CASES, level, folder)


@pytest.fixture
def kernels_of_all_levels(tmp_path):
    """A function from cases to their Kernels at every level this CPU runs."""
    usable = [level for level in LEVELS if not level.missing(cpu_flags())]
    return lambda cases: [Kernels(cases, level, tmp_path / level.name) for level in usable]
