"""The texts of the GPU kernels in CUDA C++ and MSL."""

import re
import struct
from functools import cache

import pytest
from tvm.script.ir_builder import tirx as T

from dsv3c.targets.calls.operands import CONTROL, Operand, Rows
from dsv3c.targets.cuda.capabilities import CUDA as NVIDIA
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.kernels import operands, stages, variants
from dsv3c.targets.gpu.kernels.frame import Extent, barrier, f32, prim_func, shared, spread, store
from dsv3c.targets.gpu.source import source
from dsv3c.targets.metal.capabilities import METAL as APPLE
from dsv3c.targets.metal.dialect import METAL
from tests.targets.gpu.op_tests import CASES, exact_forms, telling

PARAMETERS = {
    CUDA: r'^extern "C" __global__ void __launch_bounds__\(128, [248]\) (\w+)\((.*)\) \{$',
    METAL: r"^kernel void (\w+)\(((?:.|\n)*?)\) \{$",
}
DIALECTS = pytest.mark.parametrize("dialect", PARAMETERS, ids=["cuda", "metal"])


@cache
def kernels(dialect):
    """Every form of every kernel with every weight format: name -> (PrimFunc, roles of its operands)."""
    table = exact_forms({CUDA: NVIDIA, METAL: APPLE}[dialect])
    found, specs = {}, set()
    for number, (spec, *_) in enumerate(CASES[name] for name in telling(table)):
        for stage in stages(spec):
            if stage in specs:
                continue
            specs.add(stage)
            for form, variant in enumerate(variants(stage, table)):
                roles = [operand.role.replace(".", "_") for operand in operands(stage)]
                found[f"{type(stage).__name__}_{number}_{form}"] = variant.build(), roles
    return found


@cache
def text_of_all(dialect):
    return source({name: function for name, (function, _) in kernels(dialect).items()}, dialect)


@DIALECTS
def test_every_form_of_every_kernel_is_printed_with_its_operands_in_order(dialect):
    text = text_of_all(dialect)
    printed = dict(re.findall(PARAMETERS[dialect], text, re.MULTILINE))
    operand = r"(\w+)(?: \[\[ buffer\(\d+\) \]\])?(?:,|$)"
    for name, (_, roles) in kernels(dialect).items():
        assert re.findall(operand, printed[name])[: len(roles)] == roles
    assert printed.keys() == kernels(dialect).keys()


def test_cuda_text_needs_no_header():
    text = text_of_all(CUDA)
    assert "#include" not in text and "half" not in text and "dsv3c_f16(" in text


@DIALECTS
def test_subgroups_exchange_by_the_function_that_the_language_has(dialect):
    text = text_of_all(dialect)
    function = {CUDA: r"dsv3c_shuffle_xor\(.*, 16\)", METAL: r"simd_shuffle_xor\(.*, \(\(ushort\)16\)\)"}[dialect]
    assert re.search(rf"(?:float|int) \w+ = {function};", text)
    assert "dsv3c_" not in text or dialect is CUDA


def filled(emit):
    """A kernel with the operand y f32 [128] and the body emit(y, thread)."""
    y = Operand("y", "f32", 128)
    return prim_func([CONTROL, y], [Extent(1)], lambda buffers, groups, thread: emit(buffers, thread))


@pytest.mark.parametrize("value", [0.1, 0.693145751953125, 1.428606765330187e-06, -1 / 3, 2.5, -3.0e38, 1 / 5040])
def test_metal_text_has_every_float_exactly(value):
    text = source({"k": filled(lambda b, thread: store(b["y"], thread, f32(value)))}, METAL)
    found = re.search(r"y\[.*\] = (.*);", text).group(1)
    bits = re.fullmatch(r"\(as_type<float>\(\(uint\)(\d+)\)\)", found)
    expected = struct.pack("<f", value)
    assert (struct.pack("<I", int(bits[1])) if bits else struct.pack("<f", float(found.rstrip("f")))) == expected


@DIALECTS
def test_divisions_of_indices_are_the_devices_own(dialect):
    def emit(buffers, thread):
        store(buffers["y"], thread, T.Cast("float32", T.floordiv(buffers["control"][thread], 17)))

    assert "control[((int)threadIdx.x)] / 17" in source({"k": filled(emit)}, dialect).replace(
        "threadIdx)", "threadIdx.x)"
    )


@DIALECTS
def test_barriers_stay_where_they_are_even_inside_conditions(dialect):
    def emit(buffers, thread):
        space = shared(128)
        with T.If(buffers["control"][0] < 3), T.Then():
            store(space, thread, f32(1))
            barrier()
            store(buffers["y"], thread, space[T.int32(127) - thread])

    text = source({"k": filled(emit)}, dialect)
    synchronise = "__syncthreads()" if dialect is CUDA else "threadgroup_barrier("
    assert text.count(synchronise) == 1
    assert re.search(rf"if .*\{{\n.*\n.*{re.escape(synchronise)}", text)


@DIALECTS
def test_values_that_have_a_name_are_not_put_in_its_place(dialect):
    def emit(buffers, thread):
        value = T.bind(buffers["y"][thread])
        for _ in range(12):
            value = T.bind(value * value + value)
        store(buffers["y"], thread, value)

    assert max(map(len, source({"k": filled(emit)}, dialect).splitlines())) < 200


def test_the_axes_of_a_grid_are_those_of_the_kernel():
    grid = [Extent(4), Extent(1, Rows(5))]

    def emit(buffers, groups, thread):
        spread(128, thread, lambda i: store(buffers["y"], i, T.Cast("float32", groups[1])))

    text = source({"k": prim_func([CONTROL, Operand("y", "f32", 128)], grid, emit)}, METAL)
    assert "uint2 blockIdx [[threadgroup_position_in_grid]]" in text
