"""Prints the table of errors at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

TABLE = pytest.StashKey[dict[str, dict[str, float]]]()

Record = Callable[[str, str, float], None]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = {}


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """record(config, way, error) puts an error into the table."""

    def put(name: str, way: str, error: float) -> None:
        errors = request.config.stash[TABLE].setdefault(name, {})
        errors[way] = max(error, errors.get(way, 0.0))

    return put


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[TABLE]:
        from tests.conformance.measure import markdown

        terminalreporter.section("largest relative error against transformers")
        terminalreporter.write_line(markdown(config.stash[TABLE]))
