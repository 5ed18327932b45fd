"""What the fat binary of a CUDA artifact holds, read from the file: nothing here is run on a GPU."""

import json

import pytest

from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import verify
from dsv3c.runtime.artifact.plan import NEVER
from dsv3c.targets.cuda.architectures import UnknownArchitecture, number, parse_architectures
from dsv3c.targets.cuda.binaries import FILE, Binaries
from dsv3c.targets.cuda.capabilities import CUDA
from dsv3c.targets.gpu.kernels.attention.tensor_cores import SHARED_BYTES
from dsv3c.targets.gpu.kernels.frame import THREADS
from tests.conftest import BUNDLED_MODEL
from tests.selection import shortlist
from tests.targets.cuda.cubin import read_cubin
from tests.targets.cuda.fatbin import read_fatbin

POINTER = 8
REGISTERS = 64 << 10  # of a multiprocessor
SHARED = 16 << 10  # bytes that kernels for any GPU are written for
RESERVED = 1 << 10  # of shared memory, by the driver from compute capability 9.0 on


# nvcc takes minutes for each.
@pytest.fixture(scope="module", params=shortlist(["float16", "int8", "int4-g32"], []))
def artifact(request, nvcc, bundled_artifact):
    return bundled_artifact(request.param, "cuda")


@pytest.fixture(scope="module")
def plan(artifact):
    return json.loads((artifact / "plan.json").read_text())


@pytest.fixture(scope="module")
def images(artifact):
    """Images of the fat binary by name."""
    return read_fatbin((artifact / "kernels" / FILE).read_bytes())


@pytest.fixture(scope="module")
def cubins(images):
    """architecture -> kernels by name."""
    read = {name: read_cubin(image) for name, image in images.items() if name.startswith("sm_")}
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
    required = {form["function"]: form.get("requires") for forms in plan["dispatches"].values() for form in forms}
    for architecture, kernels in cubins.items():
        reserved = RESERVED if number(architecture) >= 90 else 0
        for name, kernel in kernels.items():
            assert kernel.threads == (plan["threads"], 1, 1)
            most = SHARED_BYTES if required[name] else SHARED
            assert kernel.shared - (reserved if kernel.shared else 0) <= most


def test_ptx_has_every_kernel_and_asks_for_the_lowest_architecture(images, plan):
    text = images["compute_80"].decode()
    assert ".target sm_80" in text
    assert {f".visible .entry {name}(" in text for name in functions(plan)} == {True}
    assert "ld.local" not in text
    assert "mma.sync.aligned.m16n8k16" in text


def test_the_manifest_has_a_level_for_each_image_the_most_general_first(artifact, images):
    target = json.loads((artifact / "manifest.json").read_text())["target"]
    assert target["name"] == "cuda"
    names = ["compute_80", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
    file = f"kernels/{FILE}"
    row = {"file": file, "prefill_min_tokens": NEVER}  # attention in latent space has tensor cores at each of them
    assert target["levels"] == [{"name": name, "requires": [name], **row} for name in names if name in images]
    assert list(images) == [level["name"] for level in target["levels"]]
    assert target["compiler"].startswith(("nvcc ", "NVRTC "))


@pytest.mark.thorough
def test_architectures_can_be_chosen(nvcc, tmp_path):
    compile_checkpoint(BUNDLED_MODEL, tmp_path / "one", CompileOptions(target="cuda:arch=sm_89", quant="int8"))
    assert read_fatbin((tmp_path / "one" / "kernels" / FILE).read_bytes()).keys() == {"compute_80", "sm_89"}


def test_the_one_file_of_all_levels_is_counted_once(artifact):
    assert [path.name for path in (artifact / "kernels").iterdir()] == [FILE]
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert [name for name in manifest["files"] if name.startswith("kernels/")] == [f"kernels/{FILE}"]
    assert verify(artifact).extra == ()


@pytest.fixture(scope="module")
def linear():
    """Functions of all forms of a linear, one of them on tensor cores."""
    from dsv3c.targets.gpu.kernels import stages, variants
    from tests.targets.gpu.op_tests import CASES

    (kernel,) = stages(CASES["linear-float16-t17-n272-k160"][0])
    forms = {f"linear_{i}": form.build for i, form in enumerate(variants(kernel, CUDA))}
    assert len(forms) == 4
    return forms


def test_both_compilers_make_every_kind_of_image(toolchain, linear, tmp_path):
    made = []
    Binaries(toolchain, ("sm_80", "sm_90")).compile(linear, tmp_path, made.append)
    images = read_fatbin((tmp_path / FILE).read_bytes())
    assert list(images) == ["compute_80", "sm_80", "sm_90"]
    for name in ("sm_80", "sm_90"):
        architecture, kernels = read_cubin(images[name])
        assert architecture == number(name) and kernels.keys() == linear.keys()
    text = images["compute_80"].decode()
    assert ".target sm_80" in text and {f".visible .entry {name}(" in text for name in linear} == {True}
    assert sum(made) == len(linear)


def test_an_architecture_below_that_of_the_ptx_is_compiled_too(toolchain, linear, tmp_path):
    Binaries(toolchain, ("sm_75", "sm_86")).compile(linear, tmp_path, lambda count: None)
    images = read_fatbin((tmp_path / FILE).read_bytes())
    assert images.keys() == {"compute_80", "sm_75", "sm_86"}
    assert {architecture: kernels.keys() for architecture, kernels in map(read_cubin, list(images.values())[1:])} == {
        75: linear.keys(),
        86: linear.keys(),
    }


def test_the_same_kernels_give_the_same_bytes(toolchain, linear, tmp_path):
    found = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        Binaries(toolchain, ("sm_80", "sm_90")).compile(linear, tmp_path / name, lambda count: None)
        found.add((tmp_path / name / FILE).read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("text", ["sm_74", "sm90", "sm_80,", "compute_80", "sm_90a", ""])
def test_what_is_no_architecture_is_refused(text):
    with pytest.raises(UnknownArchitecture, match="arch=sm_XX"):
        parse_architectures(text)


def test_architectures_are_brought_in_order():
    assert parse_architectures("sm_120+sm_80+sm_90+sm_80") == ("sm_80", "sm_90", "sm_120")


def test_an_architecture_that_the_compiler_does_not_know_is_refused_with_those_it_knows(toolchain):
    with pytest.raises(UnknownArchitecture, match="sm_80, "):
        toolchain.choose(["sm_999"])
