"""`dsv3c eval`: how well an artifact predicts a text, and how formats and methods compare on it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.compiler.cli.params import lora_option, names, weight_format
from dsv3c.runtime.cli.eval import HELP, counting_options, measure, show_report
from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo, print_json
from dsv3c.runtime.cli.params import PATH, device_options, json_option, numa_option, threads_option

if TYPE_CHECKING:
    from dsv3c.compiler.options import Lora

TABLE_SUFFIXES = (".json", ".csv", ".md")
PLOT_SUFFIX = ".svg"


def formats(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Full names of weight formats."""
    parts = names(ctx, param, value)
    return None if parts is None else tuple(dict.fromkeys(str(weight_format(ctx, param, part)) for part in parts))


def tables(ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> tuple[Path, ...]:
    for path in value:
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise click.BadParameter(f"{str(path)!r} must end in {' or '.join(TABLE_SUFFIXES)}")
    return value


def plot_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() != PLOT_SUFFIX:
        raise click.BadParameter(f"{str(value)!r} must end in {PLOT_SUFFIX}")
    return value


_SWEEP_AND_EXAMPLES = """
--sweep makes a table of formats and methods: bits per weight of the linear weights, size, change of perplexity and
KL against float32, equal first choices, seconds to compile.

\b
Examples:
  dsv3c eval OUT --text book.txt
  dsv3c eval OUT --against CHECKPOINT --text book.txt --json
  dsv3c eval --sweep CHECKPOINT --formats int8,int4 --text book.txt -o table.json --plot size-kl.svg
"""


@click.command("eval", cls=Command, help=HELP + _SWEEP_AND_EXAMPLES)
@click.argument("artifact", type=PATH, required=False)
@counting_options
@click.option(
    "--against",
    type=PATH,
    metavar="OTHER",
    help="The model to compare with: an artifact, or a checkpoint, which is compiled to float32 for this CPU.",
)
@click.option(
    "--sweep",
    type=PATH,
    metavar="CHECKPOINT",
    help="Instead of an ARTIFACT: compile this to each of --formats by each of --methods, and compare with float32.",
)
@click.option(
    "--formats", callback=formats, metavar="F,…", help="Of a sweep.  [default: one of each width, fp8, MXFP4 and NF4]"
)
@click.option("--methods", callback=names, metavar="M,…", default="rtn", show_default=True, help="Of a sweep.")
@click.option(
    "--calibration",
    type=PATH,
    metavar="FILE",
    help="Of a sweep: the text that weights are rounded for, by methods other than rtn.  [default: that of `compile`]",
)
@lora_option
@click.option(
    "-o",
    "--output",
    "outputs",
    type=PATH,
    multiple=True,
    callback=tables,
    metavar="FILE",
    help="Where a sweep writes its table: FILE ends in .json, .csv or .md. Repeatable. Rows that the .json has are not "
    "measured again.",
)
@click.option("--plot", type=PATH, callback=plot_file, metavar="FILE", help="Draw KL over size of a sweep; an .svg.")
@click.option("--keep", type=PATH, metavar="DIR", help="Where a sweep leaves its artifacts.  [default: nowhere]")
@threads_option()
@numa_option
@device_options
@json_option
def eval_command(
    artifact: Path | None, against: Path | None, sweep: Path | None, as_json: bool, texts: Any, **options: Any
) -> None:
    of_sweep = {name: options.pop(name) for name in _OF_SWEEP}
    if (artifact is None) == (sweep is None):
        raise click.UsageError("give an ARTIFACT, or a checkpoint with --sweep")
    if sweep is not None:
        numa = None if options["numa"] == "auto" else options["numa"]
        _require_none("--sweep", against=against, numa=numa, **{name: options[name] for name in _DEVICE})
        _sweep(sweep, texts, as_json, options, **of_sweep)
        return
    _require_none("an ARTIFACT", **{name: value for name, value in of_sweep.items() if name != "methods"})
    assert artifact is not None
    _evaluate(artifact, against, as_json, texts=texts, **options)


_OF_SWEEP = ("formats", "methods", "calibration", "lora", "outputs", "plot", "keep")
_DEVICE = ("device", "gpu_layers", "cpu_artifact")


def _require_none(beside: str, **given: object) -> None:
    for name, value in given.items():
        if value not in (None, ()):
            option = {"outputs": "output"}.get(name, name).replace("_", "-")
            raise click.UsageError(f"--{option} does not go with {beside}")


def _evaluate(artifact: Path, against: Path | None, as_json: bool, **options: Any) -> None:
    from dsv3c.compiler.driver.measuring import reference, reference_name
    from dsv3c.compiler.driver.pipeline import compile_checkpoint
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.runtime.measure.windows import read_text
    from dsv3c.runtime.progress import Silent

    with terminal_progress() or nullcontext(Silent()) as progress:
        if against is None:
            report = measure(artifact, None, "", progress, **options)
        else:
            Artifact.open(artifact)  # before the reference is compiled
            for text in options["texts"]:
                read_text(text)
            with reference(against, compile_checkpoint, progress) as other:
                report = measure(artifact, other, reference_name(against), progress, **options)
    show_report(artifact, report, as_json)


def _sweep(
    checkpoint: Path,
    texts: tuple[Path, ...],
    as_json: bool,
    options: dict[str, Any],
    formats: tuple[str, ...] | None,
    methods: tuple[str, ...],
    calibration: Path | None,
    lora: tuple[Lora, ...],
    outputs: tuple[Path, ...],
    plot: Path | None,
    keep: Path | None,
) -> None:
    from dsv3c.compiler.cli.sweep_plot import check_plot, draw
    from dsv3c.compiler.cli.sweep_table import check_tables, markdown, write_tables
    from dsv3c.compiler.driver.sweep import Chosen, Sweep
    from dsv3c.runtime.cli.progress import NotesOnly, terminal_progress
    from dsv3c.runtime.measure.windows import Settings

    settings = Settings(options["context"], options["bos"], options["tokens"])
    check_tables(outputs)
    if plot is not None:
        check_plot(plot)
    chosen = Chosen(formats, methods, calibration, lora, options["threads"], keep)
    with terminal_progress() or nullcontext(NotesOnly()) as progress:
        sweep = Sweep.of(checkpoint, texts, settings, chosen)
        stored = next((path for path in outputs if path.suffix.lower() == ".json"), None)
        table = sweep.resumed(stored)
        for row in sweep.missing(table, progress):
            table = table.with_row(row)
            write_tables(outputs, table)
            progress.tell(f"{row.name}: {row.told}")
    write_tables(outputs, table)
    if plot is not None:
        draw(plot, table)
    if as_json:
        print_json(table.to_dict())
        return
    echo(markdown(table), nl=False)
