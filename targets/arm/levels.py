"""The AArch64 levels kernels are built for, lowest first, and which of them a CPU runs. Each is a superset of the one
before it.

armv8.6 stands for what that version of the architecture made mandatory: 8-bit matrix products and bfloat16. Every CPU
with one of them has the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.tuning import Tuning

# A block of sixteen rows takes four registers: two blocks by four tokens would take all there are.
_TILE = Tuning(token_tile=4, row_blocks=1)

_NEON = ("asimd",)
_DOTPROD = (*_NEON, "asimddp")
_MATMUL = (*_DOTPROD, "i8mm", "bf16")

LEVELS = (
    IsaLevel(
        "armv8.0",
        "generic",
        _NEON,
        dot="smull",
        lanes=4,
        mattr=("+neon",),
        cflags=("-mcpu=generic",),
        tuning=_TILE,
    ),
    IsaLevel(
        "armv8.2-dotprod",
        "generic",
        _DOTPROD,
        dot="sdot",
        lanes=4,
        mattr=("+neon", "+dotprod"),
        cflags=("-mcpu=generic+dotprod",),
        tuning=_TILE,
    ),
    IsaLevel(
        "armv8.6",
        "generic",
        _MATMUL,
        dot="usdot",
        lanes=4,
        mattr=("+neon", "+dotprod", "+i8mm", "+bf16"),
        cflags=("-mcpu=generic+dotprod+i8mm+bf16",),
        dot2="bfdot",
        mmla="usmmla",
        tuning=_TILE,
    ),
)

# The best level of each CPU that can be named; "generic" is any.
CPUS: Mapping[str, str] = {
    "generic": "armv8.6",
    "cortex-a53": "armv8.0",
    "cortex-a72": "armv8.0",
    "cortex-a76": "armv8.2-dotprod",
    "neoverse-n1": "armv8.2-dotprod",
    "neoverse-n2": "armv8.6",
    "neoverse-v1": "armv8.6",
    "neoverse-v2": "armv8.6",
    "apple-m1": "armv8.2-dotprod",
    "apple-m2": "armv8.6",
}


def levels_of(cpu: str) -> tuple[IsaLevel, ...]:
    """The levels that the CPU runs."""
    names = [level.name for level in LEVELS]
    return LEVELS[: names.index(CPUS[cpu]) + 1]
