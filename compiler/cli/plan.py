"""`dsv3c plan`: what a model will weigh, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dsv3c.compiler.cli.params import model_options
from dsv3c.runtime.cli.output import echo, print_json, section, size
from dsv3c.runtime.cli.params import PATH, json_option


@click.command("plan")
@click.argument("checkpoint", type=PATH)
@model_options
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens to hold at once.  [default: the model's own limit]",
)
@json_option
def plan_command(checkpoint: Path, context: int | None, as_json: bool, **options: Any) -> None:
    """Say what a CHECKPOINT will weigh, and whether it fits.

    Nothing is compiled: the model is traced and laid out, but no weight is read. The sizes are exact: weights on disk
    and mapped, the cache for --context tokens, and the memory that one step works in.

    \b
    Example:
      dsv3c plan ~/models/Moonlight-16B-A3B --quant int4 --context 8192
    """
    from dsv3c.compiler.driver.size_report import plan_checkpoint
    from dsv3c.compiler.options import CompileOptions

    report = plan_checkpoint(checkpoint, CompileOptions(**options), context)
    for note in report.notes:
        echo(f"note: {note}", err=True)
    if as_json:
        print_json(report.to_dict())
        return
    weights = sum(part.weights for part in report.parts.values())
    section(
        f"weights: {size(report.weight_bytes)}, {8 * report.weight_bytes / weights:.2f} bits each",
        [(name, size(part.nbytes), part.format) for name, part in report.parts.items()],
    )
    section(
        f"memory to run it: {size(report.total_bytes)}",
        [
            ("weights", size(report.weight_bytes), "mapped from the artifact"),
            ("cache", size(report.cache_bytes), f"{report.context} tokens"),
            ("arena", size(report.arena_bytes), "what one step works in"),
        ],
    )
    if report.calibration is not None:
        section(
            f"memory to calibrate it: about {size(report.calibration.memory_bytes)}",
            [
                ("text", f"{report.calibration.tokens} tokens", f"{report.calibration.sequences} sequences"),
                ("method", report.calibration.method, "how weights become codes"),
                ("disk", size(report.calibration.disk_bytes), "activations that memory has no room for"),
            ],
        )
    echo(_verdict(report.total_bytes, report.available_bytes))


def _verdict(total: int, available: int) -> str:
    if not available:
        return "whether it fits is not known here: `dsv3c doctor` on the machine that is to run it says what is free"
    free = f"{size(available)} of this machine's memory is free"
    return f"fits: {free}" if total <= available else f"does not fit: {free}, {size(total - available)} too little"
