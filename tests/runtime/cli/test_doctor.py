"""`doctor` of the runtime: what it tells of this machine, and of an installation that is broken when mended."""

from __future__ import annotations

import json
import re

import pytest

from dsv3c.runtime import cli
from dsv3c.runtime.devices import listing as devices
from dsv3c.runtime.devices.cpu import cores
from dsv3c.runtime.devices.cpu.cores import Cores
from dsv3c.runtime.errors import NoDeviceFound
from dsv3c.runtime.measure import machine


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.run(["doctor", *args]) == 0
    return capsys.readouterr().out


def test_it_tells_cpu_memory_devices_and_packages(capsys: pytest.CaptureFixture[str]) -> None:
    heads = [line for line in run(capsys).splitlines() if not line.startswith((" ", "note"))]
    assert heads == ["cpu", "memory", "devices", "packages"]
    report = json.loads(run(capsys, "--json"))
    assert report["cpu"]["physical_cores"] >= 1
    assert report["packages"]["numpy"] and set(report["packages"]) == set(machine.PACKAGES)


@pytest.mark.parametrize(
    ("usable", "shown"), [(Cores(8, 16), "8 performance, 16 efficiency"), (Cores(6, 0), "6 physical")]
)
def test_cores_are_told_by_kind_with_the_threads_by_default(
    usable: Cores, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    monkeypatch.setattr(cores, "cpu_limit", lambda: None)
    text = run(capsys)
    assert re.search(rf"\n  cores +{shown}, \d+ logical\n  threads +{usable.performance} by default\n", text)
    report = json.loads(run(capsys, "--json"))["cpu"]
    assert (report["performance_cores"], report["efficiency_cores"]) == (usable.performance, usable.efficiency)
    assert (report["threads"], report["physical_cores"]) == (usable.performance, sum(vars(usable).values()))


def test_memory_nodes_are_told_with_their_cpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cores, "usable_nodes", lambda: {0: frozenset(range(8)), 2: frozenset(range(8, 12))})
    assert "\n  nodes     2: 8 logical cores near 0, 4 logical cores near 2\n" in run(capsys)
    report = json.loads(run(capsys, "--json"))["cpu"]
    assert report["nodes"] == [{"number": 0, "logical_cores": 8}, {"number": 2, "logical_cores": 4}]
    monkeypatch.setattr(cores, "usable_nodes", dict)
    assert "\n  nodes     1\n" in run(capsys)


def test_every_device_is_listed_with_its_number_and_a_target_without_one_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[dict[str, object]]:
        raise NoDeviceFound(api="Other", reason="the driver sleeps", get="wake it")

    card = {"type": "discrete", "memory": 8 * 10**9, "capabilities": ["fast-sums"]}
    cards = [{"number": i, "name": f"Card {i}", **card} for i in range(2)]
    monkeypatch.setattr(devices, "LISTINGS", {"some": lambda: cards, "other": broken})
    text = run(capsys)
    for i in range(2):
        assert f"  some   {i}: Card {i} (discrete, 8.00 GB, fast-sums)\n" in text
    assert "  other  none: Other finds no device: the driver sleeps\n" in text


@pytest.mark.parametrize(
    ("present", "notes"), [({"dsv3c"}, 0), ({"dsv3c-runtime"}, 0), ({"dsv3c", "dsv3c-runtime"}, 1)]
)
def test_two_distributions_with_the_same_files_are_told(
    present: set[str], notes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: "1.0" if name in present else None)
    assert len(json.loads(run(capsys, "--json"))["notes"]) == notes
    assert run(capsys).count("uninstall both, then install one") == notes
