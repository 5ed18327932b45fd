"""Builds the kernels of a test module into one library a level, and compares kernels with expected arrays."""

import ctypes

import numpy as np
import tvm_ffi

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.targets.cpu.kernels import build, operands
from dsv3c.targets.cpu.library import build_library

UNTOUCHED = {"f": np.nan, "i": -77, "u": 177}


def lacking(level):
    """What this CPU, or its system, lacks of a level."""
    missing = level.missing(cpu_flags())
    return missing or (() if permitted(level.requires) else ("leave to use its tiles",))


def aligned(size, dtype):
    """A 64-byte aligned array filled with a value no kernel writes."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + size * dtype.itemsize].view(dtype)
    out[:] = UNTOUCHED[dtype.kind]
    return out


def arguments(spec, inputs):
    """The operands by role. Inputs fill the front of their operand, the rest stays untouched."""
    arrays = {}
    for operand in operands(spec):
        dtype = np.uint16 if operand.dtype == "bf16" else NUMPY_DTYPES[operand.dtype]
        given = inputs.get(operand.role)
        array = aligned(given.size if operand.size is None else operand.size, dtype)
        if given is not None:
            array[: given.size] = np.ascontiguousarray(given).reshape(-1).view(dtype)
        arrays[operand.role] = array
    return arrays


class Kernels:
    """All kernels of one test module at one level. A case is (spec, inputs, expected, tolerance): arrays by role."""

    def __init__(self, cases, level, folder, threads=3):
        specs = dict.fromkeys(case[0] for case in cases.values())
        self._names = {spec: f"kernel_{i}" for i, spec in enumerate(specs)}
        functions = {name: build(spec, level) for spec, name in self._names.items()}
        path = build_library(functions, level, folder / "kernels.so")
        self._library = tvm_ffi.load_module(str(path))
        ctypes.CDLL(str(path)).dsv3c_threads(threads)

    def run(self, spec, inputs):
        """The operands after the call, by role."""
        arrays = arguments(spec, inputs)
        self._library[self._names[spec]](*[tvm_ffi.from_dlpack(array) for array in arrays.values()])
        return arrays

    def check(self, spec, inputs, expected, tolerance):
        compare(self.run(spec, inputs), inputs, expected, tolerance)


def compare(arrays, inputs, expected, tolerance):
    """Outputs equal `expected` within `tolerance` of its largest magnitude; nothing behind them is written."""
    for role, want in expected.items():
        got, rest = arrays[role][: want.size], arrays[role][want.size :]
        if want.dtype == NUMPY_DTYPES["bf16"]:
            got = got.view(want.dtype)
        if tolerance == 0 or want.dtype.kind in "iu":
            np.testing.assert_array_equal(got, want.reshape(-1), err_msg=role)
        else:
            error = np.abs(got.astype(np.float64) - want.reshape(-1).astype(np.float64)).max(initial=0)
            limit = tolerance * max(1e-30, np.abs(want.astype(np.float64)).max(initial=0))
            assert error <= limit, f"{role}: error {error:.3g} above {limit:.3g}"
        if role not in inputs:
            untouched = np.isnan(rest) if rest.dtype.kind == "f" else rest == UNTOUCHED[rest.dtype.kind]
            assert untouched.all(), f"{role}: written past its rows"
