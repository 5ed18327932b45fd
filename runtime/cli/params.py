"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

PATH = click.Path(path_type=Path)
Command = TypeVar("Command", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """A float within bounds, if there are any; nan compares with nothing, so a range alone lets it through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


_DEVICE_OPTIONS = (
    click.option(
        "--device",
        metavar="D",
        help="The GPU to run on: a number, a part of its name, or a type, as `PROGRAM doctor` lists them.  [default: "
        "a discrete one, else an integrated one, else a CPU]",
    ),
    click.option(
        "--gpu-layers",
        type=click.IntRange(min=0),
        metavar="N",
        help="Run only the last N layers on the GPU, the others on the CPU with --cpu-artifact.  [default: all]",
    ),
    click.option(
        "--cpu-artifact",
        type=PATH,
        metavar="OUT",
        help="The same checkpoint compiled for the CPU, for the layers that the GPU does not take.",
    ),
)


def device_options(command: Command) -> Command:
    """Adds the options `device`, `gpu_layers` and `cpu_artifact`."""
    for option in reversed(_DEVICE_OPTIONS):
        command = option(command)
    return command


def threads_option(*letters: str) -> Callable[[Command], Command]:
    """Adds the option `threads`, with further letters."""
    return click.option(
        "-j",
        *letters,
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads to use.  [default: one a performance core]",
    )


numa_option = click.option(
    "--numa",
    type=click.Choice(["auto", "off"]),
    default="auto",
    show_default=True,
    help="On machines with several memory nodes: divide threads and weights among them, or not.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
