"""A progress that is looked at afterwards."""

from __future__ import annotations

from dsv3c.runtime.progress import Silent


class Counting(Silent):
    """Stages by name: the steps that were told beforehand and those that were taken."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages[name] = [total or 0, 0]

    def advance(self, n: int = 1) -> None:
        list(self.stages.values())[-1][1] += n
