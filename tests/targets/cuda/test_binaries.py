"""What the files of a CUDA artifact hold, read from the files: nothing here is run on a GPU."""

import json

import pytest

from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.pipeline import compile_checkpoint
from dsv3c.targets.cuda.architectures import UnknownArchitecture, number, parse_architectures
from dsv3c.targets.cuda.binaries import Binaries, file_name
from dsv3c.targets.gpu.capabilities import CUDA
from dsv3c.targets.gpu.kernels.frame import THREADS
from tests.conftest import BUNDLED_MODEL
from tests.targets.cuda.cubin import read_cubin

POINTER = 8
REGISTERS = 64 << 10  # of a multiprocessor
SHARED = 16 << 10  # bytes that kernels are written for
RESERVED = 1 << 10  # of shared memory, by the driver from compute capability 9.0 on


@pytest.fixture(scope="module", params=["float16", "int8", "int4-g32"])
def artifact(request, nvcc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    compile_checkpoint(BUNDLED_MODEL, folder, CompileOptions(target="cuda", quant=request.param))
    return folder


@pytest.fixture(scope="module")
def plan(artifact):
    return json.loads((artifact / "plan.json").read_text())


@pytest.fixture(scope="module")
def cubins(artifact):
    """architecture -> kernels by name."""
    target = json.loads((artifact / "manifest.json").read_text())["target"]
    files = {level["name"]: artifact / level["file"] for level in target["levels"] if level["file"].endswith("cubin")}
    read = {name: read_cubin(path.read_bytes()) for name, path in files.items()}
    assert {name: number(name) for name in read} == {name: architecture for name, (architecture, _) in read.items()}
    return {name: kernels for name, (_, kernels) in read.items()}


def functions(plan):
    """function -> number of its operands, over all entries."""
    entries = (*plan["entries"].values(), *plan["sampling"].values())
    operands = {name: len(buffers) for entry in entries for name, buffers in entry["calls"]}
    return {form["function"]: operands[name] for name, forms in plan["dispatches"].items() for form in forms}


def test_every_architecture_has_every_kernel_with_a_pointer_for_each_operand(plan, cubins):
    assert len(cubins) >= 4
    for kernels in cubins.values():
        parameters = {name: kernel.parameters for name, kernel in kernels.items()}
        assert parameters == {name: (POINTER,) * count for name, count in functions(plan).items()}


def test_kernels_spill_nothing_and_several_workgroups_fit_into_the_registers(cubins):
    for kernels in cubins.values():
        for name, kernel in kernels.items():
            assert kernel.frame == 0, f"{name} has a stack of {kernel.frame} bytes"
            assert 2 * THREADS * kernel.registers <= REGISTERS, f"{name} uses {kernel.registers} registers"


def test_forms_on_tensor_cores_say_so_and_four_workgroups_fit_into_the_registers(plan, cubins):
    forms = [form for group in plan["dispatches"].values() for form in group if "requires" in form]
    assert len(forms) >= 5 and {name for form in forms for name in form["requires"]} == {"mma-m16n8k16"}
    for kernels in cubins.values():
        assert max(4 * THREADS * kernels[form["function"]].registers for form in forms) <= REGISTERS


def test_kernels_are_bound_to_the_threads_of_a_workgroup_and_its_shared_memory(plan, cubins):
    for architecture, kernels in cubins.items():
        reserved = RESERVED if number(architecture) >= 90 else 0
        for kernel in kernels.values():
            assert kernel.threads == (plan["threads"], 1, 1)
            assert kernel.shared - (reserved if kernel.shared else 0) <= SHARED


def test_ptx_has_every_kernel_and_asks_for_the_lowest_architecture(artifact, plan):
    text = (artifact / "kernels" / file_name("compute_80")).read_text()
    assert ".target sm_80" in text
    assert {f".visible .entry {name}(" in text for name in functions(plan)} == {True}
    assert "ld.local" not in text
    assert "mma.sync.aligned.m16n8k16" in text


def test_the_manifest_lists_the_most_general_level_first(artifact):
    target = json.loads((artifact / "manifest.json").read_text())["target"]
    assert target["name"] == "cuda"
    assert [level["name"] for level in target["levels"]][:3] == ["compute_80", "sm_80", "sm_86"]
    assert all(level["requires"] == [level["name"]] for level in target["levels"])
    assert target["compiler"].startswith(("nvcc ", "NVRTC "))


def test_architectures_can_be_chosen(nvcc, tmp_path):
    compile_checkpoint(BUNDLED_MODEL, tmp_path / "one", CompileOptions(target="cuda:arch=sm_89", quant="int8"))
    assert {path.name for path in (tmp_path / "one" / "kernels").iterdir()} == {"compute_80.ptx", "sm_89.cubin"}


def test_both_compilers_make_every_kind_of_file(toolchain, tmp_path):
    from dsv3c.targets.gpu.kernels import stages, variants
    from tests.targets.gpu.op_tests import CASES

    (kernel,) = stages(CASES["linear-float16-t17-n272-k160"][0])
    forms = {f"linear_{i}": form.build for i, form in enumerate(variants(kernel, CUDA))}
    assert len(forms) == 4
    made = []
    Binaries(toolchain, ("sm_80", "sm_90")).compile(forms, tmp_path, made.append)
    for name in ("sm_80", "sm_90"):
        architecture, kernels = read_cubin((tmp_path / f"{name}.cubin").read_bytes())
        assert architecture == number(name) and kernels.keys() == forms.keys()
    ptx = (tmp_path / "compute_80.ptx").read_bytes()
    assert ptx.endswith(b"\n") and b".target sm_80" in ptx
    assert sum(made) == len(forms)


@pytest.mark.parametrize("text", ["sm_74", "sm90", "sm_80,", "compute_80", "sm_90a", ""])
def test_what_is_no_architecture_is_refused(text):
    with pytest.raises(UnknownArchitecture, match="arch=sm_XX"):
        parse_architectures(text)


def test_architectures_are_brought_in_order():
    assert parse_architectures("sm_120+sm_80+sm_90+sm_80") == ("sm_80", "sm_90", "sm_120")


def test_an_architecture_that_the_compiler_does_not_know_is_refused_with_those_it_knows(toolchain):
    with pytest.raises(UnknownArchitecture, match="sm_80, "):
        toolchain.choose(["sm_999"])
