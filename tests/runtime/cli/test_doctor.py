"""`doctor` of the runtime: what it tells of this machine, and of an installation that is broken when mended."""

from __future__ import annotations

import json

import pytest

from dsv3c.runtime import cli
from dsv3c.runtime.devices import listing as devices
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
