"""The ARM target as a user meets it: CPUs and systems by name, and what links."""

from __future__ import annotations

import itertools
import re

import pytest

from dsv3c import targets
from dsv3c.targets import arm
from dsv3c.targets.arm.levels import CPUS, LEVELS, levels_of
from dsv3c.targets.calls.spec_text import UnknownLevelError
from dsv3c.targets.cpu.intrinsics import DOT4
from dsv3c.targets.link import platforms
from dsv3c.targets.link.platforms import ARM_LINUX, ARM_MACOS, NoCrossCompiler, find_compiler_for


def configured(text: str) -> arm.Arm:
    target: arm.Arm = targets.configured(text)
    return target


def test_a_cpu_chooses_the_levels() -> None:
    names = [level.name for level in LEVELS]
    assert [level.name for level in levels_of("generic")] == names
    assert [level.name for level in levels_of("cortex-a72")] == names[:1]
    assert [level.name for level in levels_of("cortex-a76")] == names[:2]
    assert [level.name for level in levels_of("neoverse-v1")] == names


def test_levels_rise() -> None:
    for lower, higher in itertools.pairwise(LEVELS):
        assert set(lower.requires) < set(higher.requires)
    assert {level.name for level in LEVELS} == set(CPUS.values())
    assert all(DOT4[level.dot].lanes == level.lanes for level in LEVELS)


@pytest.mark.parametrize(
    ("text", "cpu", "system"),
    [
        ("arm", "generic", "linux"),
        ("arm:cpu=cortex-a72", "cortex-a72", "linux"),
        ("arm:cpu=apple-m1", "apple-m1", "macos"),
        ("arm:cpu=apple-m1,os=linux", "apple-m1", "linux"),
        ("arm:os=macos", "generic", "macos"),
    ],
)
def test_options(text: str, cpu: str, system: str) -> None:
    found = configured(text)
    assert (found.cpu, found.system) == (cpu, system)


def test_levels_are_among_those_that_the_cpu_runs() -> None:
    chosen = configured("arm:cpu=cortex-a76,levels=armv8.2-dotprod").levels()
    assert [(level.name, level.platform) for level in chosen] == [("armv8.2-dotprod", ARM_LINUX)]
    with pytest.raises(UnknownLevelError, match=r"no level 'armv8\.6'; its levels are armv8\.0, armv8\.2-dotprod$"):
        configured("arm:cpu=cortex-a76,levels=armv8.6")


def test_unknown_values_list_the_known() -> None:
    with pytest.raises(arm.UnknownArmCpu, match=r"no CPU 'cortex-m0'.*\n.*cortex-a72, cortex-a76"):
        configured("arm:cpu=cortex-m0")
    with pytest.raises(arm.UnknownArmSystem, match=r"'windows'.*\n.*linux, macos"):
        configured("arm:os=windows")


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.host, "machine", lambda: "riscv64")


@pytest.mark.usefixtures("another_machine")
def test_ziglang_links_before_a_cross_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda _: object())
    assert find_compiler_for(ARM_LINUX)[1:] == ["-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28"]
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda _: None)
    assert find_compiler_for(ARM_LINUX) == ["/bin/aarch64-linux-gnu-gcc"]


@pytest.mark.usefixtures("another_machine")
def test_a_missing_linker_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.shutil, "which", lambda _: None)
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoCrossCompiler, match=re.escape("pip install 'dsv3c[arm]'") + ".*gcc-aarch64-linux-gnu"):
        find_compiler_for(ARM_LINUX)
    with pytest.raises(NoCrossCompiler, match=r"arm64-apple-macos: tried the Python package ziglang\n"):
        find_compiler_for(ARM_MACOS)


def test_on_an_arm_machine_its_own_compiler_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.host, "machine", lambda: "aarch64")
    monkeypatch.setattr(platforms.sys, "platform", "linux")
    monkeypatch.setenv("CC", "mycc")
    monkeypatch.setattr(platforms.shutil, "which", lambda name: f"/bin/{name}")
    assert find_compiler_for(ARM_LINUX) == ["mycc"]
