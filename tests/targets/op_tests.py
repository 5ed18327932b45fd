"""Tests of kernels for every target: a case says what a kernel must compute, a backend runs it.

A case is an operation with its sizes and formats (a spec), the operands it is given, what numpy makes of them, and how
far off a result may be. Those of tests/targets/cases are for all targets that have a kernel for their spec.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from dsv3c.compiler.formats import coded_rows
from tests.selection import shortlist

UNTOUCHED = {"f": np.nan, "i": -77, "u": 177}


class Case(NamedTuple):
    """spec: names the kernel. inputs, expected: arrays by the role of their operand. tolerance: as a part of the
    largest magnitude expected; 0 means equal."""

    spec: Any
    inputs: dict
    expected: dict
    tolerance: float


class Backend(Protocol):
    """What runs kernels of a target."""

    def runs(self, name, case):
        """The operands by role after the call, for each form of the kernel that may serve the case called `name`."""

    def tolerance(self, case):
        """The tolerance of the case, or the larger one of what this target rounds besides."""


class OpTests:
    """A target's tests subclass it with `cases`, theirs by name, and a fixture `backend`."""

    cases: Mapping[str, tuple]

    def always(self):
        """Names of the cases that are always run; the others repeat what these show, and are for `make test-all`."""
        return self.cases

    def pytest_generate_tests(self, metafunc):
        if metafunc.function.__name__ == "test_matches_numpy":
            metafunc.parametrize("name", shortlist(self.cases, self.always()))

    def test_matches_numpy(self, name, backend):
        """In every form that may serve the case, so that the one for many rows is tried with few, too."""
        case = Case(*self.cases[name])
        for arrays in backend.runs(name, case):
            compare(arrays, case.inputs, case.expected, backend.tolerance(case))


def aligned(size, dtype):
    """A 64-byte aligned array filled with a value no kernel writes."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + size * dtype.itemsize].view(dtype)
    out[:] = UNTOUCHED[dtype.kind]
    return out


def filled(operands, inputs, dtype_of):
    """The operands by role, dtype_of(IR dtype) each. Inputs fill the front of theirs, the rest stays untouched."""
    arrays = {}
    for operand in operands:
        dtype = np.dtype(dtype_of(operand.dtype))
        given = inputs.get(operand.role)
        flat = None if given is None else np.ascontiguousarray(given).reshape(-1).view(dtype)
        array = aligned(flat.size if operand.size is None else operand.size, dtype)
        if flat is not None:
            array[: flat.size] = flat
        arrays[operand.role] = array
    return arrays


def compare(arrays, inputs, expected, tolerance):
    """Outputs equal `expected` within `tolerance` of its largest magnitude; nothing behind them is written."""
    for role, want in expected.items():
        bits = arrays[role].dtype.kind == "u"  # of whatever is expected
        used = want.nbytes // arrays[role].itemsize if bits else want.size
        got, rest = arrays[role][:used], arrays[role][used:]
        got = got.view(want.dtype) if bits else got
        if coded_rows.is_coded(want.dtype):
            compare_codes(got, want)
        elif tolerance == 0 or want.dtype.kind in "iu":
            np.testing.assert_array_equal(got, want.reshape(-1), err_msg=role)
        else:
            error = np.abs(got.astype(np.float64) - want.reshape(-1).astype(np.float64)).max(initial=0)
            limit = tolerance * max(1e-30, np.abs(want.astype(np.float64)).max(initial=0))
            assert error <= limit, f"{role}: error {error:.3g} above {limit:.3g}"
        if role not in inputs:
            untouched = np.isnan(rest) if rest.dtype.kind == "f" else rest == UNTOUCHED[rest.dtype.kind]
            assert untouched.all(), f"{role}: written past its rows"


def compare_codes(got, want):
    """Scales agree, and codes but for a few that are next to each other, as numbers between two may be rounded."""
    np.testing.assert_allclose(got["scales"], want["scales"], rtol=2e-6)
    numbers = [coded_rows.decode(rows) for rows in (got, want)]
    scales = np.repeat(want["scales"], [want.dtype[part].shape[0] for part in ("first", "rest")], axis=1)
    step = scales if want["first"].dtype == np.int8 else np.maximum(np.abs(numbers[1]) / 8, scales * 2.0**-9)
    apart = np.abs(numbers[0] - numbers[1])
    assert (apart <= 1.01 * step).all(), f"codes differ by {np.nanmax(apart / step)} steps"
    assert (apart > 0.5 * step).mean() <= 0.01, "too many codes differ"
