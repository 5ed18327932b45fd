"""Units: every level gets each of its kernels once, compiled for a level that it extends."""

import pytest

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.arm.levels import LEVELS as ARM
from dsv3c.targets.calls.elementwise import Add
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.units import compiled_once
from dsv3c.targets.x86.levels import LEVELS as X86

KERNELS = {"add": Add(Rows(4), 64), "linear": Linear(Rows(4), 32, 64, WeightFormat.parse("int8"))}


def units_of(levels):
    built = [{name: build(spec, level) for name, spec in KERNELS.items()} for level in levels]
    return compiled_once(levels, built)


@pytest.mark.parametrize("levels", [X86, ARM], ids=["x86", "arm"])
def test_every_level_gets_every_kernel_once(levels):
    units = units_of(levels)
    for level in levels:
        got = [name for unit in units if level in unit.users for name in unit.functions]
        assert sorted(got) == sorted(KERNELS)


@pytest.mark.parametrize("levels", [X86, ARM], ids=["x86", "arm"])
def test_nothing_is_compiled_for_more_than_its_users_have(levels):
    for unit in units_of(levels):
        for user in unit.users:
            assert set(unit.level.requires) <= set(user.requires)
            assert unit.level.lanes == user.lanes


def test_what_is_the_same_is_compiled_once_a_vector_width():
    adds = [unit for unit in units_of(X86) if "add" in unit.functions]
    assert {unit.level.name: [user.name for user in unit.users] for unit in adds} == {
        "x86-64-v3": ["x86-64-v3", "x86-64-v3-vnni"],
        "x86-64-v4": ["x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-bf16", "x86-64-v4-amx"],
    }


def test_what_differs_is_compiled_for_each():
    linears = {unit.level.name for unit in units_of(X86) if "linear" in unit.functions}
    assert linears == {"x86-64-v3", "x86-64-v3-vnni", "x86-64-v4", "x86-64-v4-vnni", "x86-64-v4-amx"}
