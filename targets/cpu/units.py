"""What of the kernels is compiled once: levels of a kind have most kernels in common, and LLVM takes half of the time
that compiling a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi

from dsv3c.targets.cpu.isa import IsaLevel

PrimFunc = Any


@dataclass(frozen=True)
class ObjectUnit:
    """Kernels by name that are compiled together for `level`, and linked into the libraries of the levels `users`."""

    level: IsaLevel
    users: tuple[IsaLevel, ...]
    functions: Mapping[str, PrimFunc]


def compiled_once(levels: Sequence[IsaLevel], built: Sequence[Mapping[str, PrimFunc]]) -> list[ObjectUnit]:
    """Units such that each level gets all of its kernels, the largest first; built: the kernels of each level.

    A kernel that is the same at two levels is compiled for the lower one, if the higher extends it without making
    vectors wider: a wider vector is worth compiling for, although the kernel does not ask for it.
    """
    owners: dict[tuple[str, IsaLevel], list[IsaLevel]] = {}  # the users of a kernel by name and the level it is for
    for number, (level, functions) in enumerate(zip(levels, built, strict=True)):
        for name, function in functions.items():
            lower = zip(levels[:number], built[:number], strict=True)
            same = (
                other
                for other, others in lower
                if (name, other) in owners
                and _extends(level, other)
                and tvm_ffi.structural_equal(function, others[name])
            )
            owners.setdefault((name, next(same, level)), []).append(level)
    kernels = dict(zip(levels, built, strict=True))
    units: dict[tuple[IsaLevel, tuple[IsaLevel, ...]], dict[str, PrimFunc]] = {}
    for (name, level), users in owners.items():
        units.setdefault((level, tuple(users)), {})[name] = kernels[level][name]
    found = [ObjectUnit(level, users, functions) for (level, users), functions in units.items()]
    return sorted(found, key=lambda unit: -len(unit.functions))


def _extends(level: IsaLevel, lower: IsaLevel) -> bool:
    alike = (level.lanes, level.mcpu, level.platform) == (lower.lanes, lower.mcpu, lower.platform)
    return alike and set(lower.requires) <= set(level.requires)
