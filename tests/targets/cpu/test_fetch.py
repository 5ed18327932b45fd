"""Which lines of its weights a kernel fetches ahead: its prefetches call a function here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.kernels import build, products
from dsv3c.targets.cpu.kernels.fetch import TILE_AHEAD
from dsv3c.targets.cpu.kernels.weights import LINE
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.harness import arguments, lacking
from tests.targets.libraries import build_library

FORMATS = ("int4-g32", "int8", "int3-g32", "int2-g16")
ROWS, N, K = 64, 16 * 16, 1024
LISTENED = """
@dsv3c_listener = weak global ptr null
define linkonce_odr hidden i32 @dsv3c_prefetch(ptr %p) nounwind {
  %listener = load ptr, ptr @dsv3c_listener
  call void %listener(ptr %p)
  ret i32 0
}
"""
LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Fetched = Callable[[str, int], np.ndarray]


@pytest.fixture(scope="module", params=("the least level", "the best level"))
def level(request: pytest.FixtureRequest) -> Any:
    """Not one with tile registers, which take 32 rows at a time and fetch in a way of their own."""
    usable = [level for level in LEVELS if not lacking(level) and level.matrix is None]
    if not usable:
        pytest.skip("this CPU is below every x86 level")
    return usable[0 if request.param == "the least level" else -1]


@pytest.fixture(scope="module")
def fetched(level: Any, tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    """(format, rows) -> how often each line of the weights was fetched, [streams, blocks, lines of a block]."""
    specs = {name: Linear(Rows(ROWS), N, K, WeightFormat.parse(name)) for name in FORMATS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "PREFETCH_IR", LISTENED)
        functions = {name.replace("-", "_"): build(spec, level) for name, spec in specs.items()}
    path = build_library(functions, level, Path(tmp_path_factory.mktemp("fetch"), "k.so"))
    library, kernels = ctypes.CDLL(str(path)), tvm_ffi.load_module(str(path))
    library.dsv3c_threads(1)

    def run(name: str, rows: int) -> np.ndarray:
        arrays, addresses = arguments(specs[name], {"control": np.array([rows], np.int32)}), []
        listener = LISTENER(addresses.append)
        ctypes.c_void_p.in_dll(library, "dsv3c_listener").value = ctypes.cast(listener, ctypes.c_void_p).value
        kernels[name.replace("-", "_")](*[tvm_ffi.from_dlpack(array) for array in arrays.values()])
        data, together = arrays["w.data"], level.tuning.row_blocks
        lines = (np.array(addresses) - data.ctypes.data) // LINE
        count = np.bincount(lines, minlength=data.nbytes // LINE)[: data.nbytes // LINE]
        return count.reshape(together, N // 16 // together, -1)

    return run


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 9, 13, 16, 17, 33, 64])
@pytest.mark.parametrize("name", FORMATS)
def test_of_all_blocks_but_the_first_every_line_is_fetched_however_many_rows_there_are(
    name: str, rows: int, fetched: Fetched
) -> None:
    assert (fetched(name, rows)[:, 1:] > 0).all()


@pytest.mark.parametrize("rows", [2, 4])
def test_a_tile_alone_fetches_its_own_block_too(rows: int, fetched: Fetched) -> None:
    assert (fetched("int4-g32", rows)[:, 0, TILE_AHEAD // LINE :] == 1).all()


def test_a_row_alone_fetches_what_its_tuned_number_says(level: Any, fetched: Fetched) -> None:
    lines = fetched("int4-g32", 1).reshape(level.tuning.row_blocks, -1)
    ahead = level.tuning.prefetch_bytes // LINE
    assert (lines[:, ahead:] > 0).all() and not lines[0, :ahead].any()
