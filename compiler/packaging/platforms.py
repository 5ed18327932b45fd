"""The systems that an archive can be made for, and the tags of wheels that run there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.runtime.artifact.artifact import ArtifactTarget
from dsv3c.runtime.devices.cpu.features import MACHINES, machine

GLIBC = 28  # the oldest glibc, 2.28, that wheels of numpy run with; Debian 10, Ubuntu 20.04, RHEL 8 have it
OLDEST_GLIBC = 17  # of wheels; what runs with it runs with all up to GLIBC


class UnknownMachineError(Dsv3cError):
    message = "there is no platform for {system} on {machine}"
    hint = "name the device's with --platform: {known}"


@dataclass(frozen=True)
class WheelPlatform:
    """system and machine as `sys.platform` and `platform.machine` name them; tags: of wheels, the best first.

    glibc: the oldest C library it may have, "" where there is no choice.
    """

    name: str
    system: str
    machine: str
    tags: tuple[str, ...]
    glibc: str = ""

    @staticmethod
    def here() -> WheelPlatform:
        """That of this machine. Raises UnknownMachineError."""
        for platform in PLATFORMS.values():
            if platform.runs_on(sys.platform, machine()):
                return platform
        raise UnknownMachineError(system=sys.platform, machine=machine(), known=", ".join(PLATFORMS))

    def runs_on(self, system: str, machine: str) -> bool:
        return (self.system, self.machine) == (system, machine)


def _linux(name: str) -> WheelPlatform:
    tags = tuple(f"manylinux_2_{minor}_{name}" for minor in range(GLIBC, OLDEST_GLIBC - 1, -1))
    return WheelPlatform(f"linux-{name}", "linux", name, (*tags, f"manylinux2014_{name}"), f"2.{GLIBC}")


PLATFORMS: Mapping[str, WheelPlatform] = {
    platform.name: platform
    for platform in (
        _linux("x86_64"),
        _linux("aarch64"),
        WheelPlatform("macos-arm64", "darwin", "aarch64", ("macosx_14_0_arm64",)),
    )
}


def platform_of(target: ArtifactTarget) -> WheelPlatform | None:
    """What an artifact's kernel libraries are for; None where it has none or they run anywhere."""
    if any(level.file.endswith(".dylib") for level in target.levels):
        return PLATFORMS["macos-arm64"]
    wanted = MACHINES.get(target.name.partition(":")[0])
    return next((platform for platform in PLATFORMS.values() if wanted and platform.runs_on("linux", wanted)), None)
