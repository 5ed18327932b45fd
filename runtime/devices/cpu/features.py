"""What this CPU can do, and which of an artifact's kernel levels fits it."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from dsv3c.runtime.artifact.artifact import ArtifactTarget, Level
from dsv3c.runtime.errors import IsaNotSupported, ManifestInvalid, UnknownCapability, UnknownIsaLevel, WrongMachine

ISA_VARIABLE = "DSV3C_ISA"
WITHOUT_VARIABLE = "DSV3C_WITHOUT"  # names of CPU features, and of what GPU kernels ask of a device, joined by commas
# What kernels for any machine ask for: the variable is set once for many artifacts, and for a device beside this one.
_ASKED_FOR = frozenset({
    "abm", "amx_bf16", "amx_int8", "amx_tile", "avx", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vbmi2",
    "avx512_vnni", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vbmi", "avx512vl", "avx_vnni", "bmi1", "bmi2",
    "f16c", "fma", "movbe", "sse4_1", "sse4_2", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve", "sve2",
    "cooperative-matrix", "integer-dot-product", "mma-m16n8k16", "simdgroup-matrix", "subgroup-32", "subgroup-shuffle",
})  # fmt: skip

MACHINES = {"x86": "x86_64", "arm": "aarch64"}  # target family: machine, as Linux names it
_ALIASES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
# Apple reports features under its own names; kernels are labelled with those of Linux.
_APPLE_ARM = {
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.AdvSIMD": "asimd",
}
# Bits of the kernel's auxiliary vector on AArch64 (arch/arm64/include/uapi/asm/hwcap.h): entry, bit, flag.
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAPS = (
    (_AT_HWCAP, 1, "asimd"),
    (_AT_HWCAP, 10, "asimdhp"),
    (_AT_HWCAP, 20, "asimddp"),
    (_AT_HWCAP, 22, "sve"),
    (_AT_HWCAP2, 1, "sve2"),
    (_AT_HWCAP2, 13, "i8mm"),
    (_AT_HWCAP2, 14, "bf16"),
)
_APPLE_X86 = {"avx1.0": "avx", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "avx512vnni": "avx512_vnni", "lzcnt": "abm"}

TILES = "amx_tile"  # the one feature that Linux gives a process only if asked
# Of asm/unistd_64.h, asm/prctl.h and the tile data's number among the extended states of the CPU.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def machine() -> str:
    """Architecture of this machine as Linux names it: x86_64, aarch64, …"""
    name = platform.machine().lower()
    return _ALIASES.get(name, name)


def require_machine(target: ArtifactTarget) -> None:
    """Raises WrongMachine when the target's family runs on another architecture."""
    family = target.name.split(":", 1)[0]
    wanted = MACHINES.get(family)
    found = machine()
    if wanted is None or wanted == found:
        return
    suggestion = next((name for name, known in MACHINES.items() if known == found), "<target>")
    raise WrongMachine(wanted=wanted, found=found, suggestion=suggestion)


def unwanted() -> frozenset[str]:
    """What the environment variable DSV3C_WITHOUT says to do without."""
    return frozenset(os.environ.get(WITHOUT_VARIABLE, "").replace(",", " ").split())


def require_known(asked: Collection[str]) -> None:
    """asked: what kernels of an artifact ask of a device. Raises UnknownCapability for an unwanted name that is none of
    these, of those of other artifacts, and of this CPU's."""
    names = unwanted() - _ASKED_FOR - frozenset(asked)
    if names and (strange := names - all_cpu_flags()):
        raise UnknownCapability(name=min(strange), known=", ".join(sorted(asked)) or "none")


def cpu_flags() -> frozenset[str]:
    """Feature flags of the CPU by their Linux names, but for unwanted ones; empty when the system does not tell."""
    return all_cpu_flags() - unwanted()


def all_cpu_flags() -> frozenset[str]:
    """As `cpu_flags`, unwanted ones too."""
    if sys.platform == "darwin":
        return _apple_flags()
    if sys.platform == "linux" and machine() == "aarch64" and (flags := parse_hwcaps(_auxiliary())):
        return flags  # not from /proc/cpuinfo, which under an emulator tells of the machine it runs on
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    return parse_cpuinfo(text)


def parse_hwcaps(entries: Mapping[int, int]) -> frozenset[str]:
    """Flags from entries of the auxiliary vector, AT_HWCAP and AT_HWCAP2 of AArch64."""
    return frozenset(flag for entry, bit, flag in _HWCAPS if entries.get(entry, 0) >> bit & 1)


def _auxiliary() -> dict[int, int]:
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError):  # a C library without it
        return {}
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return {entry: getauxval(entry) for entry in (_AT_HWCAP, _AT_HWCAP2)}


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Flags that every CPU of a /proc/cpuinfo has (cores of one machine may differ)."""
    lines = [line.partition(":") for line in text.splitlines()]
    flags = [frozenset(value.split()) for key, _, value in lines if key.strip() in ("flags", "Features")]
    return frozenset.intersection(*flags) if flags else frozenset()


def _apple_flags() -> frozenset[str]:
    flags: set[str] = set()
    for key, value in sysctl(("machdep.cpu.features", "machdep.cpu.leaf7_features", *_APPLE_ARM)).items():
        if key in _APPLE_ARM and value == "1":
            flags.add(_APPLE_ARM[key])
        if key.startswith("machdep"):
            flags.update(_APPLE_X86.get(flag, flag) for flag in value.lower().split())
    return frozenset(flags)


def sysctl(names: Iterable[str]) -> dict[str, str]:
    """What macOS tells under these names, without those that it does not know."""
    done = subprocess.run(["/usr/sbin/sysctl", *names], capture_output=True, text=True, check=False, timeout=10)
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    return {key: value.strip() for key, _, value in lines}


def choose_level(levels: Sequence[Level], flags: frozenset[str], environment: Mapping[str, str]) -> Level:
    """Strongest level (levels rise in strength) whose flags are all present, or the one that DSV3C_ISA names.

    A level that the system does not permit counts as one whose flags are missing. Raises ManifestInvalid without any
    level, UnknownIsaLevel, or IsaNotSupported with the missing flags.
    """
    if not levels:
        raise ManifestInvalid(where="manifest.target.levels", reason="is empty")
    known = ", ".join(level.name for level in levels)
    forced = environment.get(ISA_VARIABLE, "")
    candidates = [level for level in levels if level.name == forced] if forced else list(levels)
    if not candidates:
        raise UnknownIsaLevel(level=forced, known=known)
    for level in reversed(candidates):
        if flags.issuperset(level.requires) and permitted(level.requires):
            return level
    weakest = candidates[0]
    missing = " ".join(flag for flag in weakest.requires if flag not in flags) or f"{TILES} (the system refuses it)"
    raise IsaNotSupported(level=weakest.name, missing=missing, known=known)


def permitted(requires: Collection[str]) -> bool:
    """Whether the system lets this process use these features of its CPU, which is asked if they need leave."""
    return TILES not in requires or _tiles_permitted()


@cache
def _tiles_permitted() -> bool:
    """Ask Linux for the tile registers of AMX: for all threads of this process and of those it forks, for good.

    A thread that touches a tile without that leave is killed by SIGILL.
    """
    if sys.platform != "linux" or machine() != "x86_64":
        return False
    numbers = (ctypes.c_long(n) for n in (_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA))
    return bool(ctypes.CDLL(None).syscall(*numbers) == 0)
