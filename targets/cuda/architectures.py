"""Names of NVIDIA's architectures: sm_XY is machine code for compute capability X.Y.

A cubin runs on devices of the same X and at least its Y; PTX of compute_XY is translated by the driver for any device
of at least X.Y. (CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility".)
"""

from __future__ import annotations

import re

from dsv3c.compiler.errors import Dsv3cError

# A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50. Other devices of these generations run the next lower of them.
DEFAULT = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
PTX = "compute_80"  # for devices that no cubin fits
FIRST_MMA = 80  # whose tensor cores multiply bfloat16
LOWEST = 75  # what CUDA 13 still compiles for

_NAME = re.compile(r"sm_(\d{2,3})")


class UnknownArchitecture(Dsv3cError):
    message = "unknown architecture {name!r}"
    hint = "write arch=sm_XX, or several as arch=sm_80+sm_90; known: {known}"


def number(name: str) -> int:
    """80 of sm_80 or compute_80."""
    return int(name.rpartition("_")[2])


def parse_architectures(text: str) -> tuple[str, ...]:
    """sm_XX joined by `+`, in rising order. Raises UnknownArchitecture."""
    names = text.split("+")
    for name in names:
        if not _NAME.fullmatch(name) or number(name) < LOWEST:
            raise UnknownArchitecture(name=name, known=", ".join(DEFAULT))
    return tuple(sorted(set(names), key=number))
