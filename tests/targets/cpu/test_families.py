"""The cores of CPUs, told by CPUID's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dsv3c.targets.cpu import families
from dsv3c.targets.cpu.families import cpu_name, marketed_name


def cpuinfo(folder: Path, vendor: str, family: int | str, model: int | str, name: str = "Some CPU @ 2.70GHz") -> Path:
    path = folder / "cpuinfo"
    fields = {"vendor_id": vendor, "cpu family": family, "model": model, "model name": name, "flags": "fpu vme"}
    one = "".join(f"{key}\t: {value}\n" for key, value in {"processor": 0, **fields}.items())
    path.write_text(f"{one}\n{one}")
    return path


@pytest.mark.parametrize(
    ("vendor", "family", "model", "core"),
    [
        ("AuthenticAMD", 23, 1, "zen"),  # EPYC 7001
        ("AuthenticAMD", 23, 49, "zen2"),  # EPYC 7002
        ("AuthenticAMD", 25, 1, "zen3"),  # EPYC 7003
        ("AuthenticAMD", 25, 33, "zen3"),  # Ryzen 5000
        ("AuthenticAMD", 25, 17, "zen4"),  # EPYC 9004
        ("AuthenticAMD", 25, 97, "zen4"),  # Ryzen 7000
        ("AuthenticAMD", 26, 2, "zen5"),  # EPYC 9005
        ("AuthenticAMD", 26, 68, "zen5"),  # Ryzen 9000
        ("GenuineIntel", 6, 85, "skylake-server"),
        ("GenuineIntel", 6, 143, "golden-cove"),  # Sapphire Rapids
        ("GenuineIntel", 6, 151, "golden-cove"),  # Alder Lake
        ("GenuineIntel", 6, 190, "gracemont"),  # Alder Lake-N, efficiency cores alone
    ],
)
def test_cpus_of_one_core_share_its_name(tmp_path: Path, vendor: str, family: int, model: int, core: str) -> None:
    assert cpu_name(cpuinfo(tmp_path, vendor, family, model)) == core


@pytest.mark.parametrize(
    ("vendor", "family", "model"),
    [("GenuineIntel", 25, 1), ("AuthenticAMD", 6, 143), ("GenuineIntel", 6, 9999), ("HygonGenuine", 24, 1)],
)
def test_an_unknown_core_goes_by_its_names(tmp_path: Path, vendor: str, family: int, model: int) -> None:
    assert cpu_name(cpuinfo(tmp_path, vendor, family, model)) == f"some-cpu-2-70ghz-{family}-{model}"


def test_numbers_that_are_none_are_no_fault(tmp_path: Path) -> None:
    assert cpu_name(cpuinfo(tmp_path, "AuthenticAMD", "x", "")) == "some-cpu-2-70ghz-x"
    assert cpu_name(tmp_path / "missing") == "unknown"


def test_no_two_cores_claim_a_cpu() -> None:
    claims = [(core.vendor, core.family, model) for core in families._CORES for model in core.models]
    assert len(claims) == len(set(claims))


def test_names_of_cores_are_file_names() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", core.name) for core in families._CORES)


def test_people_read_the_name_that_it_is_sold_under(tmp_path: Path) -> None:
    assert marketed_name(cpuinfo(tmp_path, "AuthenticAMD", 25, 33, "AMD Ryzen 9 5900X")) == "AMD Ryzen 9 5900X"
    assert marketed_name(tmp_path / "missing") == "unknown"
