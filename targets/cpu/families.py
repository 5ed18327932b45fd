"""Which core a CPU has: what tuned numbers depend on is its microarchitecture, not the name that it is sold under.

Families and models are those of CPUID leaf 1 (AMD APM volume 3, appendix E; Intel SDM volume 2A, table 3-8). What each
number stands for is public in Linux, arch/x86/include/asm/intel-family.h and arch/x86/kernel/cpu/amd.c. Of a hybrid CPU
it is the performance core that counts: kernels run there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class _Core:
    """A core, the CPUID family it belongs to, and its models."""

    name: str
    vendor: str
    family: int
    models: frozenset[int]


def _core(name: str, vendor: str, family: int, *models: int | range) -> _Core:
    spans = (range(each, each + 1) if isinstance(each, int) else each for each in models)
    return _Core(name, vendor, family, frozenset(model for span in spans for model in span))


_AMD, _INTEL = "AuthenticAMD", "GenuineIntel"
_CORES = (
    _core("zen", _AMD, 0x17, range(0x00, 0x30)),
    _core("zen2", _AMD, 0x17, range(0x30, 0xB0)),
    _core("zen3", _AMD, 0x19, range(0x00, 0x10), range(0x20, 0x60)),
    _core("zen4", _AMD, 0x19, range(0x10, 0x20), range(0x60, 0xB0)),
    _core("zen5", _AMD, 0x1A, range(0x00, 0x80)),
    _core("haswell", _INTEL, 6, 0x3C, 0x3F, 0x45, 0x46),
    _core("broadwell", _INTEL, 6, 0x3D, 0x47, 0x4F, 0x56),
    _core("skylake", _INTEL, 6, 0x4E, 0x5E, 0x8E, 0x9E, 0xA5, 0xA6),
    _core("skylake-server", _INTEL, 6, 0x55),
    _core("sunny-cove", _INTEL, 6, 0x6A, 0x6C, 0x7D, 0x7E, 0xA7),
    _core("willow-cove", _INTEL, 6, 0x8C, 0x8D),
    _core("golden-cove", _INTEL, 6, 0x8F, 0x97, 0x9A, 0xB7, 0xBA, 0xBF, 0xCF),
    _core("redwood-cove", _INTEL, 6, 0xAA, 0xAC, 0xAD, 0xAE, 0xB5),
    _core("lion-cove", _INTEL, 6, 0xBD, 0xC5, 0xC6),
    _core("gracemont", _INTEL, 6, 0xBE),
)


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """A file name for this machine's CPU: its core where that is known (zen3), else model name, family and model."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = _fields(text, "vendor_id", "model name", "cpu family", "model")
    core = _known(found)
    if core is not None:
        return core
    words = " ".join(found[key] for key in ("model name", "cpu family", "model") if key in found) or "unknown"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def marketed_name(cpuinfo: Path = _CPUINFO) -> str:
    """What the CPU calls itself, for people."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return _fields(text, "model name").get("model name", "unknown")


def _fields(text: str, *keys: str) -> dict[str, str]:
    matches = {key: re.search(rf"^{key}[ \t]*:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE) for key in keys}
    return {key: match[1] for key, match in matches.items() if match}


def _known(found: Mapping[str, str]) -> str | None:
    numbers = [found.get(key, "") for key in ("cpu family", "model")]
    if not all(number.isdecimal() for number in numbers):
        return None
    family, model = (int(number) for number in numbers)
    vendor = found.get("vendor_id")
    fits = (core for core in _CORES if (core.vendor, core.family) == (vendor, family) and model in core.models)
    return next((core.name for core in fits), None)
