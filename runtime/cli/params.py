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


device_option = click.option(
    "--device",
    metavar="D",
    help="The GPU to run on: a number, a part of its name, or a type, as `PROGRAM doctor` lists them.  [default: "
    "a discrete one, else an integrated one, else a CPU]",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
