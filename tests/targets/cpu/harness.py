"""Builds the kernels of a test module into one library a level, and runs them."""

import ctypes

import numpy as np
import tvm_ffi

from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.sparse import MlaSparse
from dsv3c.targets.cpu.kernels import build, operands
from tests.targets.libraries import build_library
from tests.targets.op_tests import filled

ROUNDED = 2.0**-7  # of queries and probabilities


def lacking(level):
    """What this CPU, or its system, lacks of a level."""
    missing = level.missing(cpu_flags())
    return missing or (() if permitted(level.requires) else ("leave to use its tiles",))


def arguments(spec, inputs):
    """The operands of a kernel by role."""
    return filled(operands(spec), inputs, lambda dtype: np.uint16 if dtype == "bf16" else NUMPY_DTYPES[dtype])


def tolerance_at(level, case):
    """Levels with a product of bfloat16 round queries and probabilities over a cache of these."""
    attends = isinstance(case.spec, MlaAbsorbed | MlaMaterialized | MlaSparse) and case.spec.paging.element == "bf16"
    return ROUNDED if level.dot2 and attends else case.tolerance


class Kernels:
    """All kernels of one test module at one level, built into one library: the backend of the CPUs that are here."""

    def __init__(self, cases, level, folder, threads=3):
        self._level = level
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

    def runs(self, name, case):
        yield self.run(case.spec, case.inputs)

    def tolerance(self, case):
        return tolerance_at(self._level, case)
