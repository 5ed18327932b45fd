"""`dsv3c tune`: find the kernels' numbers that are fastest on this machine."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.compiler.cli.params import compile_options, model_options
from dsv3c.runtime.cli.output import echo, print_json, section
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.compiler.driver.tune import TuneReport

_UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Seconds of "90s", "10m" or "2h"."""
    match = re.fullmatch(r"(\d+)([smh])", value)
    if not match:
        raise click.BadParameter(f"{value!r} is no duration such as 90s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]


@click.command("tune")
@click.argument("model", metavar="CHECKPOINT|OUT", type=PATH)
@model_options
@click.option("--budget", callback=duration, default="10m", show_default=True, help="How long to search: 90s, 10m, 2h.")
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Stop after this many trials, if sooner.")
@click.option("--records", type=PATH, metavar="DIR", help="Where records live.  [default: artifacts/tuning]")
@json_option
def tune_command(
    model: Path, budget: float, trials: int | None, records: Path | None, as_json: bool, **options: Any
) -> None:
    """Search the kernels' numbers on this machine, by measuring a model: a CHECKPOINT, or an artifact made from one.

    Each trial builds the kernels with other numbers (rows per tile, unrolling, work per task) and measures decode and
    prefill of the whole model. What is found is written to artifacts/tuning/<cpu>.json, and `dsv3c compile` takes it up
    for this CPU from then on. A search goes on where the last one stopped; Ctrl-C keeps the best so far. Needs optuna
    (pip install dsv3c[tune]).

    \b
    Examples:
      dsv3c tune CHECKPOINT --quant int4 --budget 10m
      dsv3c tune OUT --trials 20      with the format and options of an artifact
    """
    from dsv3c.compiler.driver.tune import tune
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.targets.cpu.tuning import RECORDS

    with terminal_progress() or nullcontext() as progress:
        report = tune(
            model,
            compile_options(options),
            budget,
            trials,
            records or RECORDS,
            progress,
            progress.tell if progress else lambda text: echo(text, err=True),
        )
    if as_json:
        print_json(
            {
                "record": str(report.record),
                "tuning": report.tuning.to_json(),
                "trials": report.trials,
                "interrupted": report.interrupted,
                "default": vars(report.default),
                "best": vars(report.best),
            }
        )
        return
    _tell(report)


def _tell(report: TuneReport) -> None:
    default, best = report.default, report.best
    state = ", interrupted" if report.interrupted else ""
    section(
        f"wrote {report.record} ({report.trials} trials{state})",
        [
            ("prefill", f"{best.prefill:.0f} tok/s", f"{best.prefill / default.prefill:.2f} x the defaults"),
            ("decode", f"{best.decode:.1f} tok/s", f"{best.decode / default.decode:.2f} x the defaults"),
            *((name, value, "") for name, value in report.tuning.to_json().items()),
        ],
    )
