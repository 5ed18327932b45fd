"""CUDA artifacts of the bundled model, and a driver over host memory that runs their kernels; see fake_driver.c."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.devices.cuda import driver as cuda
from dsv3c.targets.cuda import binaries
from tests.conftest import BUNDLED_MODEL
from tests.targets.cuda.cubin import read_cubin
from tests.targets.cuda.fatbin import read_fatbin
from tests.targets.gpu.shim.cuda import cuda_library, kernels, parameters

GIGABYTE = 1 << 30
TARGET = "cuda:arch=sm_80+sm_86"
SOURCE = Path(__file__).with_name("fake_driver.c")


@dataclass
class Compiled:
    """An artifact for sm_80 and sm_86, and its kernels for this CPU: name -> (library, parameters, threads)."""

    folder: Path
    functions: dict = field(default_factory=dict)


@pytest.fixture(scope="session")
def nvcc():
    return shutil.which("nvcc")


@pytest.fixture(scope="session")
def compiled(nvcc, gpp, tmp_path_factory):
    """The bundled model in a weight format; kernels have the parameters that the cubin says they have."""
    found = {}

    def of(quant):
        if quant not in found:
            found[quant] = _compile(quant, tmp_path_factory.mktemp(f"cuda-{quant}"))
        return found[quant]

    return of


def _compile(quant, folder):
    texts, printed = [], binaries.cuda_source

    def remembered(functions):
        texts.append(printed(functions))
        return texts[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binaries, "cuda_source", remembered)
        compile_checkpoint(BUNDLED_MODEL, folder / "artifact", CompileOptions(target=TARGET, quant=quant))
    (text,) = texts
    library = cuda_library(text)
    images = read_fatbin((folder / "artifact" / "kernels" / binaries.FILE).read_bytes())
    _, binary = read_cubin(images["sm_86"])
    assert {name: len(parameters(kernel)) for name, kernel in kernels(text).items()} == {
        name: len(kernel.parameters) for name, kernel in binary.items()
    }
    functions = {name: (library, len(kernel.parameters), kernel.threads[0]) for name, kernel in binary.items()}
    return Compiled(folder / "artifact", functions)


@pytest.fixture(scope="session")
def fake_library(nvcc, tmp_path_factory):
    program = nvcc  # its cuda.h says what a driver looks like
    include = next(
        (
            path
            for path in (*Path(program).resolve().parents, Path("/usr/local/cuda"))
            if (path / "include/cuda.h").exists()
        ),
        None,
    )
    if include is None:
        pytest.skip("no cuda.h beside nvcc")
    path = tmp_path_factory.mktemp("driver") / "libfake.so"
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(["gcc", *flags, f"-I{include}/include", "-o", str(path), str(SOURCE)], check=True)
    return path


class Fake:
    """The driver of fake_driver.c, with one device of compute capability 8.6 unless it is reset."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.fake_message.restype = self.library.fake_loaded.restype = ctypes.c_char_p
        self.reset()

    def reset(self, devices=1, capability=86, capacity=GIGABYTE, version=13000):
        self.library.fake_reset(devices, capability, ctypes.c_size_t(capacity), version)

    def register(self, compiled):
        """The kernels of an artifact."""
        for name, (library, count, threads) in compiled.functions.items():
            entry, launch = library.entry(name)
            self.library.fake_kernel(name.encode(), entry, launch, count, threads)

    def fail(self, function, countdown, code):
        self.library.fake_fail(function.encode(), countdown, code)

    def fail_kernel(self, countdown, code):
        self.library.fake_fail_kernel(countdown, code)

    def __getattr__(self, name):
        value = getattr(self.library, f"fake_{name}")()
        return value.decode() if isinstance(value, bytes) else value


@pytest.fixture
def fake(fake_library, monkeypatch):
    """In place of the driver; what was opened must have given everything back when the test ends."""
    monkeypatch.setattr(cuda, "LIBRARY", str(fake_library))
    driver = Fake(fake_library)
    yield driver
    assert driver.live == 0, driver.message
