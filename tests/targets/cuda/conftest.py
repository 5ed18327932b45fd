"""The compilers of CUDA kernels; tests that need one skip with the reason where there is none."""

import shutil
from pathlib import Path

import pytest

from dsv3c.targets.cuda.toolchains import NoCudaCompiler, Nvcc, find_nvrtc


@pytest.fixture(scope="session")
def nvcc():
    program = shutil.which("nvcc")
    if program is None:
        pytest.skip("no nvcc (NVIDIA's CUDA toolkit)")
    return Nvcc(Path(program))


@pytest.fixture(scope="session")
def nvrtc():
    try:
        return find_nvrtc()
    except NoCudaCompiler:
        pytest.skip("no NVRTC with nvFatbin (pip install 'dsv3c[cuda]')")


@pytest.fixture(scope="session", params=["nvcc", "nvrtc"])
def toolchain(request):
    """Each compiler that this machine has."""
    return request.getfixturevalue(request.param)
