"""Which compiler is taken, and what is said where none is or where it refuses."""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cuda import toolchains
from dsv3c.targets.cuda.toolchains import CudaRefused, NoCudaCompiler, NoFatbinLibrary, Nvcc, Nvrtc, find_toolchain
from tests.conftest import BUNDLED_MODEL


def test_nvcc_comes_before_nvrtc(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/there/{name}")
    assert find_toolchain() == Nvcc(Path("/there/nvcc"))


def packages(monkeypatch, folder, files):
    """In place of all that is installed: nothing but these files, package -> names."""
    for package, names in files.items():
        (folder / package / "lib").mkdir(parents=True)
        for name in names:
            (folder / package / "lib" / name).touch()

    class Spec:
        def __init__(self, package):
            self.submodule_search_locations = (str(folder / package),)

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(
        toolchains.importlib.util, "find_spec", lambda package: Spec(package) if package in files else None
    )


COMPILERS = ("libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13", "libnvrtc.so.13")


def test_without_a_toolkit_nvrtc_and_nvfatbin_are_taken(monkeypatch, tmp_path):
    packages(monkeypatch, tmp_path, {"nvidia.cu13": [*COMPILERS, "libnvfatbin.so.13"]})
    folder = tmp_path / "nvidia.cu13" / "lib"
    assert find_toolchain() == Nvrtc(folder / "libnvrtc.so.13", folder / "libnvfatbin.so.13")


def test_the_libraries_of_cuda_12_are_taken_together(monkeypatch, tmp_path):
    twelve = {"nvidia.cuda_nvrtc": ["libnvrtc.so.12"], "nvidia.nvfatbin": ["libnvfatbin.so.12"]}
    packages(monkeypatch, tmp_path, twelve | {"nvidia.cu13": COMPILERS})
    assert {path.name for path in (find_toolchain().path, find_toolchain().nvfatbin)} == {
        "libnvrtc.so.12",
        "libnvfatbin.so.12",
    }


@pytest.mark.parametrize("others", [{}, {"nvidia.nvfatbin": ["libnvfatbin.so.12"]}])
def test_nvrtc_without_nvfatbin_of_its_version_is_told_with_what_brings_both(others, monkeypatch, tmp_path):
    packages(monkeypatch, tmp_path, {"nvidia.cu13": COMPILERS} | others)
    with pytest.raises(NoFatbinLibrary, match=r"libnvrtc\.so\.13, but not nvFatbin(.|\n)*pip install 'dsv3c\[cuda\]'"):
        compile_checkpoint(BUNDLED_MODEL, tmp_path / "none", CompileOptions(target="cuda", quant="int8"))
    assert not (tmp_path / "none").exists()


def test_without_a_compiler_nothing_is_written_and_both_are_named(monkeypatch, tmp_path):
    packages(monkeypatch, tmp_path, {})
    with pytest.raises(NoCudaCompiler, match=r"neither nvcc nor NVRTC(.|\n)*pip install 'dsv3c\[cuda\]'"):
        compile_checkpoint(BUNDLED_MODEL, tmp_path / "none", CompileOptions(target="cuda", quant="int8"))
    assert not (tmp_path / "none").exists()


def test_the_library_of_built_in_functions_is_loaded_from_beside_nvrtc(nvrtc):
    assert nvrtc.version
    (builtins,) = (path for path in nvrtc.path.parent.glob("libnvrtc-builtins.so*"))
    ctypes.CDLL(builtins.name, mode=os.RTLD_NOLOAD)


def test_a_refusal_has_the_output_of_the_compiler(toolchain):
    with pytest.raises(CudaRefused, match=r"compute_80(.|\n)*nonsense"):
        toolchain.fatbin("__global__ void f() { nonsense; }", ["sm_80"])


def test_a_refusal_of_nvfatbin_has_its_reason(nvrtc):
    with pytest.raises(CudaRefused, match=r"nvfatbin(.|\n)*nvFatbinAddCubin: "):
        nvrtc._joined({"sm_90": b"no cubin"})


def test_both_say_their_version(toolchain):
    assert toolchain.version.split()[0] in ("nvcc", "NVRTC")
    assert toolchain.version.split()[1][0].isdigit()
