"""The bundled model compiled with `--emit native`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3c.runtime.devices.cpu.features import cpu_flags, machine
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.native.binding import Model

USABLE = tuple(level.name for level in LEVELS if not level.missing(cpu_flags()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if machine() == "x86_64" and USABLE:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no level of the x86 target runs on this machine"))


@pytest.fixture(scope="session")
def artifact(bundled_artifact: Callable[..., Path]) -> Callable[[str], Path]:
    """The folder of the artifact in a weight format."""
    return bundled_artifact


@pytest.fixture(scope="session")
def folder(artifact: Callable[[str], Path]) -> Path:
    """The artifact in int8."""
    return artifact("int8")


@pytest.fixture
def model(folder: Path):
    opened = Model(folder, max_batch=3)
    yield opened
    opened.close()
