"""The Mach-O library of an artifact's kernels, made here and looked at; TVM's own reader parses its content."""

import importlib.util
import re
import sys

import pytest

from dsv3c.compiler.driver import machine, pipeline
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.link import platforms
from dsv3c.targets.link.platforms import LinkFailed, NoCrossCompiler
from dsv3c.targets.metal import library as linking
from dsv3c.targets.metal.library import LIBRARY, SYMBOL, link_library
from dsv3c.targets.metal.payload import MetalKernel, library_bin
from tests.conftest import BUNDLED_MODEL
from tests.targets.metal import loader, macho

TEXT = "kernel void k(device float* x [[buffer(0)]]) {}"
DATA = library_bin({"k": MetalKernel(TEXT, 1, ("blockIdx.x", "threadIdx.x"))})


@pytest.fixture
def without_ziglang(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda n: None if n == "ziglang" else find_spec(n))
    monkeypatch.setattr(platforms.sys, "platform", "linux")


@pytest.fixture(scope="module")
def path(artifacts):
    return artifacts("int4-g32") / "kernels" / LIBRARY


@pytest.fixture(scope="module")
def library(path):
    return macho.read(path)


def test_it_has_a_name_without_folders_and_needs_the_system_alone(library):
    assert library.name == f"@rpath/{LIBRARY}"
    assert library.needed == ["/usr/lib/libSystem.B.dylib"]


@pytest.mark.skipif(sys.platform == "darwin", reason="Apple's linker asks for the system that it runs on")
def test_it_is_for_macos_11_and_later(library):
    assert library.minimum == (macho.MACOS, (11, 0))


def test_it_exports_one_symbol_with_all_texts(library, path):
    assert library.symbols.keys() - {"___dso_handle", "__mh_dylib_header"} == {f"_{SYMBOL}"}  # those are any library's
    texts = {found.stem: found.read_text() for found in path.parent.glob("*.metal")}
    assert texts and loader.parse(loader.module_of(loader.carried(library)))[2] == texts


def test_it_is_signed(library):
    macho.check_signature(library)


def test_a_changed_byte_breaks_the_signature(path, tmp_path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / LIBRARY).write_bytes(data)
    with pytest.raises(AssertionError):
        macho.check_signature(macho.read(tmp_path / LIBRARY))


def test_it_has_no_path_of_this_machine(library):
    rest = library.data.replace(loader.carried(library), b"")
    assert set(re.findall(rb"/[\w.+-]+/[\w.+/-]+", rest)) <= {b"/usr/lib/dyld", b"/usr/lib/libSystem.B.dylib"}


def test_the_same_kernels_give_the_same_library(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        link_library(DATA, tmp_path / name / LIBRARY)
    assert (tmp_path / "first" / LIBRARY).read_bytes() == (tmp_path / "second" / LIBRARY).read_bytes()


def test_tvm_reads_the_library_of_this_system(modules, tmp_path, open_cpu):
    module = open_cpu(None).load(link_library(DATA, tmp_path / "metal.so", None))
    assert (module.kind, len(module.imports)) == ("library", 1)
    assert module.implements_function("k", query_imports=True)
    assert not module.implements_function("other", query_imports=True)


def test_a_linker_that_fails_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(linking, "find_compiler_for", lambda _: ["sh", "-c", "echo no such linker >&2; exit 1"])
    with pytest.raises(LinkFailed, match=r"(?s)linking .*metal\.dylib failed: sh -c .*no such linker"):
        link_library(DATA, tmp_path / LIBRARY)


@pytest.mark.usefixtures("without_ziglang")
def test_compiling_without_ziglang_says_what_to_install(tmp_path):
    with pytest.raises(NoCrossCompiler, match=r"arm64-apple-macos: tried the Python package ziglang\n.*dsv3c\[arm\]"):
        pipeline.compile_checkpoint(BUNDLED_MODEL, tmp_path / "out", CompileOptions(target="metal"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ziglang")
def test_doctor_says_that_ziglang_is_missing():
    (missing,) = (need for row in machine.readiness() if row.target == "metal" for need in row.missing)
    assert missing.name == "macos-linker" and "ziglang" in missing.get
