"""The level with AMX is taken only where the system gives this process leave to use the tiles."""

from __future__ import annotations

import sys

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Level
from dsv3c.runtime.devices.cpu import features as cpu_features
from dsv3c.runtime.devices.cpu.features import choose_level, permitted

LEVELS = (Level("bf16", ("avx512f",), "bf16.so"), Level("amx", ("avx512f", "amx_tile", "amx_int8"), "amx.so"))
FLAGS = frozenset(LEVELS[1].requires)


@pytest.fixture(params=[True, False], ids=["given", "refused"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each time that the system is asked, which answers it."""
    answers: list[bool] = []

    def ask() -> bool:
        answers.append(request.param)
        return answers[-1]

    monkeypatch.setattr(cpu_features, "_tiles_permitted", ask)
    return answers


def test_level_with_tiles_needs_leave(asked: list[bool]) -> None:
    found = choose_level(LEVELS, FLAGS, {})
    assert len(asked) == 1
    assert found.name == ("amx" if asked[0] else "bf16")


def test_leave_is_asked_for_no_other_level(asked: list[bool]) -> None:
    assert choose_level(LEVELS, FLAGS - {"amx_int8"}, {}).name == "bf16"
    assert choose_level(LEVELS, FLAGS, {"DSV3C_ISA": "bf16"}).name == "bf16"
    assert permitted(("avx2", "avx512f"))
    assert not asked


def test_forced_level_without_leave_is_an_error(asked: list[bool]) -> None:
    if permitted(("amx_tile",)):
        assert choose_level(LEVELS, FLAGS, {"DSV3C_ISA": "amx"}).name == "amx"
        return
    with pytest.raises(errors.IsaNotSupported, match=r"amx needs the CPU features amx_tile \(the system refuses it\)"):
        choose_level(LEVELS, FLAGS, {"DSV3C_ISA": "amx"})


def test_forced_level_without_tiles_is_an_error() -> None:
    with pytest.raises(errors.IsaNotSupported, match="amx needs the CPU features amx_tile amx_int8,"):
        choose_level(LEVELS, frozenset({"avx512f"}), {"DSV3C_ISA": "amx"})


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_cpu_without_tiles_has_none_to_give() -> None:
    if "amx_tile" in cpu_features.cpu_flags():
        pytest.skip("this CPU has tiles")
    assert not permitted(("amx_tile",))


@pytest.mark.parametrize(("platform", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_other_systems_have_no_tiles(monkeypatch: pytest.MonkeyPatch, platform: str, machine: str) -> None:
    monkeypatch.setattr(cpu_features.sys, "platform", platform)
    monkeypatch.setattr(cpu_features, "machine", lambda: machine)
    assert not cpu_features._tiles_permitted.__wrapped__()
