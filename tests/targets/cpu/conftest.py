"""The levels this CPU runs, and the kernels of a test module at each of them."""

from pathlib import Path

import pytest

from dsv3c.targets.x86.levels import LEVELS
from tests.selection import selected
from tests.targets.cpu.emulation import EMULATED, EMULATED_VNNI, emulation
from tests.targets.cpu.harness import Kernels, lacking


def prepared(level):
    if level.matrix == EMULATED.matrix:
        emulation()
    return level


_BEST = next((level for level in reversed(LEVELS) if not lacking(level)), None)


def param(level):
    """The best level of this CPU always, those below it and the emulated ones when everything is run."""
    marks = [pytest.mark.isa(*level.requires), *([] if level is _BEST else [pytest.mark.thorough])]
    return pytest.param(level, marks=marks, id=level.name)


@pytest.fixture(scope="session", params=[param(level) for level in (*LEVELS, EMULATED_VNNI, EMULATED)])
def level(request):
    return prepared(request.param)


@pytest.fixture(scope="module")
def kernels(request, level, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp(level.name)
    run = selected(request)
    return Kernels({name: case for name, case in request.module.CASES.items() if name in run}, level, folder)


@pytest.fixture
def kernels_of_all_levels(tmp_path):
    """A function from cases to their Kernels at every level this CPU runs."""
    usable = [prepared(level) for level in (*LEVELS, EMULATED_VNNI, EMULATED) if not lacking(level)]
    return lambda cases: [Kernels(cases, level, tmp_path / level.name) for level in usable]


@pytest.fixture(autouse=True)
def no_fault():
    """No test may do what the tiles of a CPU would refuse."""
    yield
    if emulation.cache_info().currsize:
        assert emulation().amx_fault() is None
