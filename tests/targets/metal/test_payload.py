"""What the runtime hands to TVM's Metal runtime, byte for byte as TVM itself writes a module of kind "metal"."""

import re

import pytest
import tvm
from tvm.runtime import _ffi_api

from dsv3c.runtime.metal_gpu import Kernel, payload
from dsv3c.targets.gpu.kernels import operands, variants
from dsv3c.targets.gpu.source import METAL, source
from tests.targets.gpu.op_tests import CASES
from tests.targets.metal.loader import HANDLE, Reader, parse

CASES_TRIED = ("linear-int4-g32-asym-t5-n15-k31", "rope-table")


def written_by_tvm(name, form):
    """The bytes of the module in which TVM keeps the kernel, out of a library that it would export."""
    target = tvm.target.Target({"kind": "metal", "host": {"kind": "llvm"}})
    function = form.build().with_attr("global_symbol", name)
    device = tvm.tirx.build(tvm.IRModule({name: function}), target)
    module = getattr(device, "mod", device)
    text = _ffi_api.ModulePackImportsToC(module, False, "")
    numbers = re.search(r"=\s*\{(.*?)\}", text, re.DOTALL)[1]
    reader = Reader(bytes(int(number, 0) for number in re.findall(r"0x[0-9a-fA-F]+|\d+", numbers)))
    reader.unpack("<Q")
    for _ in range(2):
        reader.many(lambda: reader.unpack("<Q"))  # which module imports which
    kinds = {}
    for _ in range(2):
        kind = reader.raw()
        kinds[kind] = b"" if kind == b"_lib" else reader.raw()
    assert reader.ended()
    return kinds[b"metal"]


@pytest.mark.parametrize("case", CASES_TRIED)
def test_a_module_is_what_tvm_writes(case):
    spec = CASES[case][0]
    form = variants(spec)[0]
    theirs = written_by_tvm("k", form)
    (name, (types, tags, _)), *rest = parse(theirs)[1].items()
    assert not rest and len(tags) == len(form.grid) + 1
    ours = payload({name: Kernel(parse(theirs)[2][name], len(operands(spec)), len(form.grid))})
    assert ours == theirs
    assert types == [HANDLE] * len(operands(spec))


def test_every_function_has_its_own_text_and_arguments():
    spec = CASES["rope-table"][0]
    forms = {name: variants(spec)[0] for name in ("first", "second")}
    texts = {name: source({name: form.build()}, METAL) for name, form in forms.items()}
    kernels = {name: Kernel(text, len(operands(spec)), 2) for name, text in texts.items()}
    kind, infos, found = parse(payload(kernels))
    assert (kind, found) == ("metal", texts)
    assert infos == {name: ([HANDLE] * 4, ["blockIdx.x", "blockIdx.y", "threadIdx.x"], [0] * 4) for name in forms}
