"""What a library carries, byte for byte as TVM itself writes it for a module of kind "metal"."""

import re
from dataclasses import replace

import pytest
import tvm
from tvm.runtime import _ffi_api

from dsv3c.targets.gpu.kernels import operands, variants
from dsv3c.targets.metal.msl import printed
from dsv3c.targets.metal.payload import MetalKernel, library_bin, payload
from tests.targets.gpu.op_tests import CASES
from tests.targets.metal.loader import HANDLE, module_of, parse

CASES_TRIED = ("linear-int4-g32-asym-t5-n15-k31", "rope-table")


def written_by_tvm(name, form):
    """The bytes in which TVM keeps the kernel in a library that it exports."""
    target = tvm.target.Target({"kind": "metal", "host": {"kind": "llvm"}})
    function = form.build().with_attr("global_symbol", name)
    device = tvm.tirx.build(tvm.IRModule({name: function}), target)
    module = getattr(device, "mod", device)
    text = _ffi_api.ModulePackImportsToC(module, False, "")
    numbers = re.search(r"=\s*\{(.*?)\}", text, re.DOTALL)[1]
    return bytes(int(number, 0) for number in re.findall(r"0x[0-9a-fA-F]+|\d+", numbers))


@pytest.mark.parametrize("case", CASES_TRIED)
def test_a_library_has_what_tvm_writes(case):
    spec = CASES[case][0]
    form = variants(spec)[0]
    theirs = written_by_tvm("k", form)
    _, infos, texts = parse(module_of(theirs))
    (name, (types, tags, _)), *rest = infos.items()
    assert not rest and len(tags) == len(form.grid) + 1
    ours = replace(printed(name, form.build()), text=texts[name])  # TVM's passes write it otherwise
    assert library_bin({name: ours}) == theirs
    assert types == [HANDLE] * len(operands(spec))


def test_every_function_has_its_own_text_and_arguments():
    spec = CASES["rope-table"][0]
    kernels = {name: printed(name, variants(spec)[0].build()) for name in ("first", "second")}
    assert all(f"kernel void {name}(" in kernel.text for name, kernel in kernels.items())
    kind, infos, found = parse(payload(kernels))
    assert (kind, found) == ("metal", {name: kernel.text for name, kernel in kernels.items()})
    assert infos == {name: ([HANDLE] * 4, ["blockIdx.x", "blockIdx.y", "threadIdx.x"], [0] * 4) for name in kernels}


def test_sizes_are_counted_in_bytes():
    """A text may have letters that take several."""
    kernels = {"k": MetalKernel("// 16 × 4", 0, ("threadIdx.x",))}
    assert parse(module_of(library_bin(kernels)))[2] == {"k": "// 16 × 4"}
