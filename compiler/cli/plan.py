"""`dsv3c plan`: what a model will weigh, before any work."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.compiler.cli.params import compile_options, model_options
from dsv3c.runtime.cli.output import echo, print_json, section, size
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.compiler.checkpoint.hub import Afar
    from dsv3c.compiler.driver.sizes import ModelPart
    from dsv3c.compiler.driver.time_cost import CompileTime
    from dsv3c.compiler.quantisation.quant_plan import PlannedWeight, QuantPlan

_UNREAD = (
    "--quant auto chooses by what each format costs the weights, which are not here: sizes are those of the budget, the"
    " mix that is shown is one for normal numbers"
)
_RATES = (10_000_000, 100_000_000)  # bytes a second


@click.command("plan")
@click.argument("checkpoint", type=PATH)
@model_options
@click.option(
    "--context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens to hold at once.  [default: the model's own limit]",
)
@click.option(
    "--write-plan",
    type=PATH,
    metavar="FILE",
    help="Write the format of each weight there, to be changed and given back.",
)
@click.option("--plot", type=PATH, metavar="FILE.svg", help="Draw the bits of each layer and role there.")
@json_option
def plan_command(
    checkpoint: Path, context: int | None, write_plan: Path | None, plot: Path | None, as_json: bool, **options: Any
) -> None:
    """Say what a CHECKPOINT will weigh, and whether it fits.

    CHECKPOINT is a folder, a GGUF file, or the id of a folder on a hub, ORG/NAME or ORG/NAME@REVISION, of which it
    fetches headers alone. Nothing is compiled: the model is traced and laid out, and but for --quant auto no weight is
    read; of an id that shows the sizes of its budget. Sizes are exact: weights on disk and mapped, the cache for
    --context tokens, and the memory that one step works in. Times are about what this machine takes when it is idle.

    \b
    Examples:
      dsv3c plan ~/models/Moonlight-16B-A3B --quant int4 --context 8192
      dsv3c plan moonshotai/Moonlight-16B-A3B --quant int4
      dsv3c plan CHECKPOINT --quant auto --target-bpw 4.25 --calibration FILE --write-plan plan.json --plot plan.svg
      dsv3c compile CHECKPOINT --quant-plan plan.json
    """
    from dsv3c.compiler.checkpoint import hub
    from dsv3c.compiler.cli import plan_chart
    from dsv3c.compiler.driver import costs
    from dsv3c.compiler.driver.size_report import plan_checkpoint
    from dsv3c.compiler.driver.workplace import write_whole
    from dsv3c.compiler.options import AUTO
    from dsv3c.compiler.quantisation import quant_plan
    from dsv3c.runtime.cli.progress import terminal_progress

    chosen = compile_options(options)
    if plot is not None:
        plan_chart.check_plot(plot)
    if write_plan is not None:
        quant_plan.check_replaceable(write_plan)
    with hub.afar(checkpoint) as seen, terminal_progress() or nullcontext() as progress:
        unread = bool(seen.download_bytes) and chosen.quant == AUTO
        costing = costs.unread if unread else costs.measured
        wanted = bool(plot or write_plan)
        report = plan_checkpoint(seen.folder, chosen, context, progress, each_weight=wanted, costing=costing)
    for note in (*report.notes, *((_UNREAD,) if unread else ())):
        echo(f"note: {note}", err=True)
    if report.quant_plan is not None and write_plan is not None:
        write_whole(write_plan, report.quant_plan.text())
    if report.quant_plan is not None and plot is not None:
        plan_chart.draw(plot, report.quant_plan, checkpoint.resolve().name)
    if as_json:
        print_json(report.to_dict() | ({"download_bytes": seen.download_bytes} if seen.download_bytes else {}))
        return
    if seen.download_bytes:
        _tell_download(seen)
    weights = sum(part.weights for part in report.parts.values())
    section(
        f"weights: {size(report.weight_bytes)}, {8 * report.weight_bytes / weights:.2f} bits each",
        [_part(name, part) for name, part in report.parts.items()],
    )
    if report.quant_plan is not None:
        tell_formats(report.quant_plan)
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
    if report.time is not None:
        _tell_time(report.time)
    echo(_verdict(report.total_bytes, report.available_bytes))


def _tell_download(seen: Afar) -> None:
    """What compiling would fetch first, and how long that takes at some speeds."""
    times = (f"{_time(seen.download_bytes / rate)} at {size(rate)}/s" for rate in _RATES)
    rows = [("fetched for this", size(seen.read_bytes)), ("takes", ", ".join(times))]
    section(f"to download: {size(seen.download_bytes)} in {seen.files} files", rows)


def _tell_time(took: CompileTime) -> None:
    """What compiling takes on this machine, with nothing else to do."""
    rows = [
        ("weights", _time(took.weights), "by samples that were rounded now"),
        ("hashing", _time(took.hashing), "of what is read and written"),
    ]
    if took.kernels:
        rows.insert(0, ("kernels", _time(took.kernels), "of all levels; none where --cache-dir has them"))
    if took.calibrates:
        rows.append(("and", "", "the calibration, whose time is not known before"))
    section(f"time to compile it: about {_time(took.seconds)}", rows)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tell_formats(plan: QuantPlan) -> None:
    """The formats of a plan by role, over all layers."""
    roles: dict[str, list[PlannedWeight]] = {}
    for row in plan.rows:
        roles.setdefault(re.sub(r"\.\d+\.", ".*.", row.weight.name), []).append(row)
    cost = f", cost {plan.facts['cost']:g}: {plan.facts['measure']}" if "cost" in plan.facts else ""
    section(f"formats: {plan.bits():.2f} bits for each linear weight{cost}", [_role(*item) for item in roles.items()])


def _role(name: str, rows: list[PlannedWeight]) -> tuple[str, str, str]:
    bits = 8 * sum(row.nbytes for row in rows) / sum(row.weight.parameters for row in rows)
    counts = Counter(row.format for row in rows).most_common()
    return name, f"{bits:.2f} bits", ", ".join(f"{format} x {n}" if len(rows) > 1 else format for format, n in counts)


def _part(name: str, part: ModelPart) -> tuple[str, str, str, str]:
    bits = f"{8 * part.nbytes / part.weights:.2f} bits" if part.weights else ""
    return name, size(part.nbytes), bits, part.format


def _verdict(total: int, available: int) -> str:
    if not available:
        return "whether it fits is not known here: `dsv3c doctor` on the machine that is to run it says what is free"
    free = f"{size(available)} of this machine's memory is free"
    return f"fits: {free}" if total <= available else f"does not fit: {free}, {size(total - available)} too little"
