"""What lies in the libraries of each ARM level: the instructions it is named for and none above, for both systems."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tvm

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.devices.cpu.device import _built_for
from dsv3c.targets.arm.levels import LEVELS
from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.elementwise import Swiglu
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.cpu.library import compile_module
from dsv3c.targets.link.platforms import ARM_LINUX, ARM_MACOS, Platform
from tests.targets.libraries import build_library

SPECS = {
    "int8": Linear(Rows(8), 32, 128, WeightFormat.parse("int8")),
    "int4": Linear(Rows(8), 32, 128, WeightFormat.parse("int4-g32")),
    "absorbed": MlaAbsorbed(Rows(8), 4, Paging(2, 8, 16, 64, 16, "bf16"), 0.1),
}
WANTED = {
    "armv8.0": {"smull", "sadalp", "fmla"},
    "armv8.2-dotprod": {"sdot", "fmla"},
    "armv8.6": {"usdot", "usmmla", "bfdot", "fmla"},
}
FORBIDDEN = {
    "armv8.0": {"sdot", "udot", "usdot", "smmla", "ummla", "usmmla", "bfdot", "bfmmla"},
    "armv8.2-dotprod": {"usdot", "smmla", "ummla", "usmmla", "bfdot", "bfmmla"},
    "armv8.6": {"whilelo", "ptrue"},  # of SVE, which this version does not ask for
}


def test_kernels_have_the_instructions_of_their_level(level: IsaLevel) -> None:
    functions = {name: build(spec, level).with_attr("global_symbol", name) for name, spec in SPECS.items()}
    text = compile_module(tvm.IRModule(functions), level).inspect_source("asm")
    used = set(re.findall(r"^\t([a-z][a-z0-9]+)(?:\.[0-9a-z]+)?\s", text, re.MULTILINE))
    assert WANTED[level.name] - used == set()
    assert FORBIDDEN[level.name] & used == set()


@pytest.mark.needs("arm_linker")
@pytest.mark.parametrize(
    "platform", [ARM_LINUX, pytest.param(ARM_MACOS, marks=pytest.mark.thorough)], ids=["linux", "macos"]
)
def test_libraries_are_linked_for_their_system(platform: Platform, tmp_path: Path) -> None:
    level = replace(LEVELS[-1], platform=platform)
    path = build_library({"swiglu": build(Swiglu(Rows(64), 2048), level)}, level, tmp_path / level.library)
    data = path.read_bytes()
    assert path.suffix == platform.suffix
    assert _built_for(path, data[:20]) == (platform.system, "aarch64")
    assert b"dsv3c_threads\0" in data and b"dsv3c_probe_int8\0" in data
    assert str(tmp_path).encode() not in data and str(Path(__file__).parents[3]).encode() not in data
    versions = [tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_([0-9.]+)\0", data)]
    assert all(version <= (2, 28) for version in versions)
    assert bool(versions) == (platform is ARM_LINUX)
