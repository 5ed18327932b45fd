"""What kernels tell the thread pool of their weights: items of one node need no bytes of another's."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from dsv3c.runtime.devices.cpu import cores
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cases.dense import linear_case
from tests.targets.cases.moe import moe_case
from tests.targets.cpu.harness import arguments, lacking
from tests.targets.libraries import build_library
from tests.targets.op_tests import Case

CASES = {
    "linear": linear_case("int4-g32", 3, 384, 256),
    "linear-one-block-at-a-time": linear_case("int4-g32-asym", 2, 17 * 16, 256),
    "linear-floats": linear_case("bfloat16", 3, 200, 256),
    "heads": linear_case("int8", 2, 64, 256, heads=5),
    "gate-up": moe_case(MoeGateUp, "int4-g32", 5, 96, 160, 8, 2, 1),
    "gate-up-odd": moe_case(MoeGateUp, "float32", 2, 96, 150, 6, 3, 0),
    "down": moe_case(MoeDown, "int4-g32", 5, 1040, 96, 8, 2, 1),
    "down-odd": moe_case(MoeDown, "bfloat16", 1, 600, 96, 8, 2, 1),
}
PARTS = ("w.data", "w.scale", "w.zero")


class Env(ctypes.Structure):
    _fields_ = (("sync", ctypes.c_void_p), ("num_task", ctypes.c_int32))


TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Env), ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, TASK, ctypes.c_void_p, ctypes.c_int)


@pytest.fixture(scope="module")
def level() -> Any:
    usable = [level for level in LEVELS if not lacking(level)]
    return usable[-1] if usable else pytest.skip("this CPU is below every x86 level")


def library(folder: Path, level: Any) -> Path:
    return build_library(
        {f"k{i}": build(case[0], level) for i, case in enumerate(CASES.values())}, level, folder / "k.so"
    )


@pytest.fixture(scope="module")
def path(level: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(tmp_path_factory.mktemp("announced"), level)


def kernel(path: Path, name: str) -> Callable[..., Any]:
    return tvm_ffi.load_module(str(path))[f"k{list(CASES).index(name)}"]


def called(function: Callable[..., Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    function(*[tvm_ffi.from_dlpack(array) for array in arrays.values()])
    return arrays["y"]


def announced(spec: Any, level: Any) -> list[int]:
    """segments, blocks, run and the bytes of a block of each part, as the text of the kernel has them."""
    pattern = r'"dsv3c_announce_weights", .*, (\d+), (\d+), (\d+), T\.address_of(.*)$'
    said = re.search(pattern, build(spec, level).script(), re.MULTILINE)
    assert said is not None
    return [int(number) for number in (*said.groups()[:3], *re.findall(r"T\.int64\((\d+)\)", said[4]))]


@pytest.mark.parametrize("name", CASES)
def test_items_of_a_node_need_none_of_the_others_bytes(name: str, path: Path, level: Any) -> None:
    case = Case(*CASES[name])
    segments, blocks, run, *sizes = announced(case.spec, level)
    items = -(-blocks // run)
    function, loaded = kernel(path, name), ctypes.CDLL(str(path))  # in this order: loading sets the slot
    slot = ctypes.c_void_p.in_dll(loaded, "__TVMBackendParallelLaunch")
    loaded.dsv3c_threads(1)
    whole = called(function, arguments(case.spec, case.inputs))
    rows = int(case.inputs["order"][0]) if isinstance(case.spec, MoeGateUp) else getattr(case.spec, "heads", 1)
    covered = np.zeros(whole.size, bool)

    def launch_of(own: range) -> Any:
        def launch(task: Any, closure: Any, _: int) -> int:
            env = Env(None, rows * items)  # as many tasks as items: one each
            return max(task(row * items + item, ctypes.byref(env), closure) for row in range(rows) for item in own)

        return LAUNCH(launch)

    for own in (range(items // 2), range(items // 2, items)):
        arrays = arguments(case.spec, case.inputs)
        for part, size in zip(PARTS, sizes, strict=False):
            if part not in arrays:
                continue
            stored = arrays[part].view(np.uint8).reshape(segments, blocks, size)
            stored[:, : own.start * run] = stored[:, own.stop * run :] = 0xAB
        launch = launch_of(own)
        before, slot.value = slot.value, ctypes.cast(launch, ctypes.c_void_p).value
        found = called(function, arrays)
        slot.value = before
        written = ~np.isnan(found)
        assert np.array_equal(found[written], whole[written])
        assert not (covered & written).any()
        covered |= written
    assert np.array_equal(covered, ~np.isnan(whole))


def two_nodes(folder: Path) -> Iterable[int]:
    """The files of a machine whose memories are near one half each of the CPUs here; these CPUs."""
    usable = sorted(cores.usable_cpus())
    halves = usable[: len(usable) // 2], usable[len(usable) // 2 :]
    for number, cpus in enumerate(halves):
        node = folder / f"sys/devices/system/node/node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(",".join(map(str, cpus)), encoding="utf-8")
    (folder / "sys/devices/system/node/online").write_text("0-1", encoding="utf-8")
    return usable


def test_dividing_changes_no_bit(level: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usable = two_nodes(tmp_path)
    if len(list(usable)) < 2:
        pytest.skip("needs two CPUs")
    monkeypatch.setenv("CC", f'cc -DSYSTEM_ROOT="{tmp_path}"')
    divided = library(tmp_path, level)
    loaded = ctypes.CDLL(str(divided))
    for name, given in CASES.items():
        case, found, function = Case(*given), {}, kernel(divided, name)
        for size in (0, 1 << 20):
            loaded.dsv3c_threads(4)
            assert loaded.dsv3c_nodes(ctypes.c_uint64(size)) == (2 if size else 1)
            found[size] = [called(function, arguments(case.spec, case.inputs)) for _ in range(5)]
        assert all(np.array_equal(y, found[0][0], equal_nan=True) for ys in found.values() for y in ys)
    assert os.sched_getaffinity(0) == set(usable)  # the caller is not bound
