"""The compilers of CUDA kernels; tests are left out where one that they use is not there."""

import shutil
from pathlib import Path

import pytest

from dsv3c.targets.cuda.toolchains import Nvcc, find_nvrtc


@pytest.fixture(scope="session")
def nvcc():
    return Nvcc(Path(shutil.which("nvcc")))


@pytest.fixture(scope="session")
def nvrtc():
    return find_nvrtc()


COMPILERS = [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("nvcc", "nvrtc")]


@pytest.fixture(scope="session", params=COMPILERS)
def toolchain(request):
    """Each compiler that this machine has."""
    return request.getfixturevalue(request.param)
