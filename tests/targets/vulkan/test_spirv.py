"""Compiling GLSL: either program will do, and without one it is said before anything is built."""

import json
import shutil

import pytest

from dsv3c import targets
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX
from dsv3c.targets.gpu.kernels import variants
from dsv3c.targets.vulkan import BindingInvalid
from dsv3c.targets.vulkan.capabilities import VULKAN
from dsv3c.targets.vulkan.matrices import EXTENSION
from dsv3c.targets.vulkan.spirv import (
    NoShaderCompiler,
    ShaderInvalid,
    compile_glsl,
    compile_modules,
    expressible,
    find_compiler,
    find_matrix_compiler,
    version,
)
from tests.targets.gpu.op_tests import CASES

SHADER = "#version 450\nlayout(local_size_x = 1) in;\nvoid main() {}\n"
MAGIC = b"\x03\x02\x23\x07"


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in ("glslc", "glslangValidator")])
def program(request, monkeypatch, tmp_path):
    """The only shader compiler on the path."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / request.param).symlink_to(shutil.which(request.param))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return request.param


def test_a_kernel_becomes_a_module(program, tmp_path):
    (form,) = variants(CASES["rope-table"][0])
    done = []
    compile_modules({"table": form.build}, tmp_path, done.append)
    assert (tmp_path / "table.spv").read_bytes().startswith(MAGIC)
    assert done == [1]


def test_what_is_no_glsl_is_refused_in_the_programs_words(program, tmp_path):
    with pytest.raises(ShaderInvalid, match=rf"{program} refuses the kernel k:(.|\n)*undeclared"):
        compile_glsl("k", SHADER.replace("{}", "{ x = 1; }"), tmp_path / "k.spv")


def test_without_a_program_the_error_says_which_packages_have_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoShaderCompiler, match=r"neither glslc nor glslangValidator was found(.|\n)*glslang-tools"):
        find_compiler()


def stand_in(folder, name, refused):
    """A program that writes its name for a module, and refuses sources with `refused` in them."""
    path = folder / name
    write = f'while [ "$1" != -o ]; do shift; done; echo {name} > "$2"'
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nif grep -q '{refused}'; then exit 1; fi\n{write}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def two_programs(monkeypatch, tmp_path):
    """Of which the first does not know cooperative matrices."""
    (tmp_path / "programs").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return [
        stand_in(tmp_path / "programs", name, refused)
        for name, refused in (("glslc", EXTENSION), ("glslangValidator", "nothing"))
    ]


def test_kernels_with_matrices_take_the_program_that_knows_them(two_programs, tmp_path):
    assert [find_compiler(), find_matrix_compiler()] == two_programs
    asking = SHADER.replace("layout", f"#extension {EXTENSION} : require\nlayout")
    for source, program in ((SHADER, "glslc"), (asking, "glslangValidator")):
        assert compile_glsl("k", source, tmp_path / "k.spv").read_text().strip() == program


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_forms_with_matrices_are_made_where_a_program_knows_them(known, two_programs, tmp_path):
    if not known:
        (tmp_path / "programs" / "glslangValidator").unlink()
    capabilities, _ = expressible()
    assert capabilities.some == VULKAN.some - (set() if known else {COOPERATIVE_MATRIX})


def test_the_manifest_says_which_program_made_the_modules(shader_compiler, artifacts):
    manifest = json.loads((artifacts("int4-g32") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["target"]["compiler"].split(", ")[0] == version(shader_compiler)
    assert any(character.isdigit() for character in version(shader_compiler))


@pytest.mark.parametrize("text", ["0", "2048", "-1", "1.5", "x", "²"])
def test_a_binding_is_a_number_of_mebibytes(text):
    with pytest.raises(BindingInvalid, match="must be a number of MiB from 1 to 2047"):
        targets.get("vulkan").configured({"binding": text})


def test_without_options_any_device_will_do():
    chosen = targets.get("vulkan").configured({})
    assert chosen.max_binding == 128 << 20
    assert issubclass(BindingInvalid, Dsv3cError)
