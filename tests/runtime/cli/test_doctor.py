"""`doctor` of the runtime: what it tells of this machine, and of an installation that is broken when mended."""

from __future__ import annotations

import json

import pytest

from dsv3c.runtime import cli, machine


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert cli.run(["doctor", *args]) == 0
    return capsys.readouterr().out


def test_it_tells_cpu_memory_and_packages(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys)
    assert [line for line in text.splitlines() if not line.startswith((" ", "note"))] == ["cpu", "memory", "packages"]
    report = json.loads(run(capsys, "--json"))
    assert report["cpu"]["physical_cores"] >= 1
    assert report["packages"]["numpy"] and set(report["packages"]) == set(machine.PACKAGES)


@pytest.mark.parametrize(
    ("present", "notes"), [({"dsv3c"}, 0), ({"dsv3c-runtime"}, 0), ({"dsv3c", "dsv3c-runtime"}, 1)]
)
def test_two_distributions_with_the_same_files_are_told(
    present: set[str], notes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: "1.0" if name in present else None)
    assert len(json.loads(run(capsys, "--json"))["notes"]) == notes
    assert run(capsys).count("uninstall both, then install one") == notes
