"""The ARM levels, built for Linux."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsv3c.targets.arm.levels import LEVELS
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.link.platforms import ARM_LINUX


@pytest.fixture(scope="session", params=LEVELS, ids=lambda level: level.name)
def level(request: pytest.FixtureRequest) -> IsaLevel:
    return replace(request.param, platform=ARM_LINUX)
