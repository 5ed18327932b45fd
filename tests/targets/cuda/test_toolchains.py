"""Which compiler is taken, and what is said where none is or where it refuses."""

import shutil
from pathlib import Path

import pytest

from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.pipeline import compile_checkpoint
from dsv3c.targets.cuda import toolchains
from dsv3c.targets.cuda.toolchains import CudaRefused, NoCudaCompiler, Nvcc, Nvrtc, find_toolchain
from tests.conftest import BUNDLED_MODEL


def test_nvcc_comes_before_nvrtc(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/there/{name}")
    assert find_toolchain() == Nvcc(Path("/there/nvcc"))


def test_nvrtc_is_taken_where_there_is_no_toolkit(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchains, "find_nvrtc", lambda: tmp_path)
    assert find_toolchain() == Nvrtc(tmp_path)


def test_nvrtc_is_found_beside_its_library_of_built_in_functions(monkeypatch, tmp_path):
    folder = tmp_path / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True)
    for name in ("libnvrtc-builtins.so.13.0", "libnvrtc.alt.so.13", "libnvrtc.so.13"):
        (folder / name).touch()

    class Spec:
        submodule_search_locations = (str(folder.parent),)

    monkeypatch.setattr(toolchains.importlib.util, "find_spec", lambda name: Spec())
    assert toolchains.find_nvrtc() == folder / "libnvrtc.so.13"


def test_without_a_compiler_nothing_is_written_and_both_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchains, "find_nvrtc", lambda: None)
    with pytest.raises(NoCudaCompiler, match=r"neither nvcc nor NVRTC(.|\n)*pip install 'dsv3c\[cuda\]'"):
        compile_checkpoint(BUNDLED_MODEL, tmp_path / "none", CompileOptions(target="cuda", quant="int8"))
    assert not (tmp_path / "none").exists()


def test_a_refusal_has_the_output_of_the_compiler(toolchain):
    with pytest.raises(CudaRefused, match=r"compute_80(.|\n)*nonsense"):
        toolchain.ptx("__global__ void f() { nonsense; }", "compute_80")


def test_both_say_their_version(toolchain):
    assert toolchain.version.split()[0] in ("nvcc", "NVRTC")
    assert toolchain.version.split()[1][0].isdigit()
