"""The runtime's program on the toy, for tests that need a process: python -m tests.runtime.cli.toy_program ARGS"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsv3c.runtime import cli
from tests.runtime import toy


def use_toy_device(patch: Callable[[str, Any], object]) -> None:
    patch("dsv3c.runtime.model.place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots)))


def main() -> None:
    import dsv3c.runtime.model

    use_toy_device(lambda _, place: setattr(dsv3c.runtime.model, "place", place))
    cli.main()


if __name__ == "__main__":
    main()
