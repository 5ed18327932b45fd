"""Which kernel level runs here, and what is said when none does."""

from __future__ import annotations

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import ArtifactTarget, Level
from dsv3c.runtime.devices.cpu import features as cpu_features
from dsv3c.runtime.devices.cpu.features import (
    choose_level,
    cpu_flags,
    parse_cpuinfo,
    parse_hwcaps,
    require_known,
    require_machine,
)
from dsv3c.targets.arm.levels import LEVELS as ARM
from dsv3c.targets.cuda.capabilities import CUDA
from dsv3c.targets.metal.capabilities import METAL
from dsv3c.targets.vulkan.capabilities import VULKAN
from dsv3c.targets.x86.levels import LEVELS as X86

LEVELS = (
    Level("v3", ("avx2", "fma"), "v3.so"),
    Level("v4", ("avx2", "fma", "avx512f"), "v4.so"),
    Level("vnni", ("avx2", "fma", "avx512f", "avx512_vnni"), "vnni.so"),
)


def test_strongest_level_that_fits() -> None:
    assert choose_level(LEVELS, frozenset({"avx2", "fma", "avx512f", "sse"}), {}).name == "v4"
    assert choose_level(LEVELS, frozenset({"avx2", "fma", "avx512_vnni"}), {}).name == "v3"


def test_variable_forces_a_level() -> None:
    flags = frozenset(LEVELS[2].requires)
    assert choose_level(LEVELS, flags, {"DSV3C_ISA": "v3"}).name == "v3"
    assert choose_level(LEVELS, flags, {"DSV3C_ISA": ""}).name == "vnni"


def test_variable_names_an_unknown_level() -> None:
    with pytest.raises(errors.UnknownIsaLevel, match=r"'avx9'.*v3, v4, vnni"):
        choose_level(LEVELS, frozenset(), {"DSV3C_ISA": "avx9"})


def test_variable_names_a_level_the_cpu_lacks() -> None:
    with pytest.raises(errors.IsaNotSupported, match="vnni needs the CPU features avx512f avx512_vnni"):
        choose_level(LEVELS, frozenset({"avx2", "fma"}), {"DSV3C_ISA": "vnni"})


def test_no_level_fits() -> None:
    with pytest.raises(errors.IsaNotSupported, match=r"v3 needs the CPU features fma(.|\n)*x86 CPUs need AVX2"):
        choose_level(LEVELS, frozenset({"avx2"}), {})
    with pytest.raises(errors.ManifestInvalid, match="levels: is empty"):
        choose_level((), frozenset({"avx2"}), {})


def test_a_user_can_rule_features_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "all_cpu_flags", lambda: frozenset(LEVELS[2].requires))
    monkeypatch.setenv("DSV3C_WITHOUT", ",cooperative-matrix, avx512_vnni ")
    assert choose_level(LEVELS, cpu_flags(), {}).name == "v4"


def test_a_misspelt_feature_is_told_with_those_that_kernels_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "all_cpu_flags", lambda: frozenset({"gfni"}))
    monkeypatch.setenv("DSV3C_WITHOUT", "avx512f, cooperative-matrix, gfni, ours")  # of others, a GPU, this CPU
    require_known({"avx2", "ours"})
    monkeypatch.setenv("DSV3C_WITHOUT", "avx2 avx512vnni")
    with pytest.raises(errors.UnknownCapability, match=r"'avx512vnni'; what kernels .* ask of a device: avx2, fma\n"):
        require_known({"fma", "avx2"})


ASKED = {name for level in (*ARM, *X86) for name in level.requires}


@pytest.mark.parametrize("name", sorted(ASKED.union(*(each.always | each.some for each in (CUDA, METAL, VULKAN)))))
def test_a_name_that_any_target_asks_for_is_known_everywhere(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(cpu_features, "all_cpu_flags", frozenset)
    monkeypatch.setenv("DSV3C_WITHOUT", name)
    require_known(())


def test_flags_are_those_of_every_core() -> None:
    text = "processor: 0\nflags\t\t: avx2 fma\n\nprocessor: 1\nflags : avx2\n"
    assert parse_cpuinfo(text) == {"avx2"}
    assert parse_cpuinfo("Features : asimd asimddp\n") == {"asimd", "asimddp"}
    assert parse_cpuinfo("") == frozenset()


def test_flags_of_arm_are_bits_of_the_auxiliary_vector() -> None:
    hwcap, hwcap2 = 16, 26
    assert parse_hwcaps({hwcap: 1 << 1, hwcap2: 0}) == {"asimd"}
    assert parse_hwcaps({hwcap: 1 << 1 | 1 << 20, hwcap2: 1 << 13 | 1 << 14}) == {"asimd", "asimddp", "i8mm", "bf16"}
    assert parse_hwcaps({}) == frozenset()


def test_on_arm_the_auxiliary_vector_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu_features, "_auxiliary", lambda: {16: 1 << 1 | 1 << 20})
    assert cpu_features.cpu_flags() == {"asimd", "asimddp"}
    monkeypatch.setattr(cpu_features, "_auxiliary", dict)
    monkeypatch.setattr(cpu_features, "parse_cpuinfo", lambda text: frozenset({"of cpuinfo"}))
    assert cpu_features.cpu_flags() == {"of cpuinfo"}


@pytest.mark.parametrize(("target", "machine"), [("x86:cpu=zen4", "aarch64"), ("arm", "x86_64")])
def test_wrong_machine_names_both(monkeypatch: pytest.MonkeyPatch, target: str, machine: str) -> None:
    monkeypatch.setattr(cpu_features, "machine", lambda: machine)
    with pytest.raises(errors.WrongMachine, match=f"compiled for .*, this machine is {machine}"):
        require_machine(ArtifactTarget(target, ()))


def test_machine_goes_by_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "AMD64")
    assert cpu_features.machine() == "x86_64"
    require_machine(ArtifactTarget("x86", ()))
