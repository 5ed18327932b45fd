"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


class Finite(click.FloatRange):
    """A float within bounds; nan compares with nothing, so a range alone lets it through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
