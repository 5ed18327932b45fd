"""`dsv3c bench`: how fast a model runs on this machine, and how close to what the machine can do."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli.decoding import drafter
from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo
from dsv3c.runtime.cli.params import PATH, device_options, numa_option, threads_option

if TYPE_CHECKING:
    from dsv3c.runtime.cli.bench_report import Report
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.measure.bench import Bench, Settings
    from dsv3c.runtime.progress import Progress

PLOT_SUFFIXES = (".svg", ".png")
SPECULATE_WITHOUT = ("prompts", "depths", "batches", "per_op", "plot")


def counts(low: int) -> Any:
    """An option's callback: whole numbers from `low` on, separated by commas, as a tuple."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
        found = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and int(part) >= low for part in found):
            raise click.BadParameter(f"{value!r} must be numbers from {low} on, separated by commas")
        return tuple(dict.fromkeys(int(part) for part in found))

    return parse


def sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """As `counts(0)`, where 0 stands for no test."""
    found: tuple[int, ...] = counts(0)(ctx, param, value)
    return tuple(size for size in found if size)


def plot_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in PLOT_SUFFIXES:
        raise click.BadParameter(f"{str(value)!r} must end in {' or '.join(PLOT_SUFFIXES)}")
    return value


@click.command("bench", cls=Command)
@click.argument("artifact", type=PATH)
@click.option(
    "-p",
    "--prompt-tokens",
    "prompts",
    callback=sizes,
    metavar="P,…",
    default="512",
    show_default=True,
    help="Tokens to read at once; 0 leaves this test out.",
)
@click.option(
    "-n",
    "--new-tokens",
    "generated",
    callback=sizes,
    metavar="N,…",
    default="128",
    show_default=True,
    help="Tokens to generate one by one; 0 leaves this test out.",
)
@click.option(
    "-d",
    "--depth",
    "depths",
    callback=counts(0),
    metavar="D,…",
    default="0",
    show_default=True,
    help="Tokens that are in the context already when a test begins.",
)
@click.option(
    "-b",
    "--batch",
    "batches",
    callback=counts(1),
    metavar="B,…",
    default="1",
    show_default=True,
    help="Sequences to generate side by side.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(min=1),
    metavar="R",
    default=5,
    show_default=True,
    help="Times each test is repeated, after a first run that does not count.",
)
@threads_option("-t")  # as llama-bench has it
@numa_option
@device_options
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["md", "json", "csv"]),
    default="md",
    show_default=True,
    help="A table to read, or text for a program.",
)
@click.option("--per-op", is_flag=True, help="Break a prefill and a token down by kernel.")
@click.option(
    "--plot",
    type=PATH,
    callback=plot_file,
    metavar="FILE",
    help="Draw speed over depth, or over several sizes of -b; FILE ends in .svg or .png.",
)
@click.option(
    "--speculate",
    metavar="[mtp|ngram]",  # or an artifact, as before there was --draft
    help="Measure instead what drafts gain: by the model's own layer, or by what the text says already.",
)
@click.option(
    "--draft", type=click.Path(), metavar="OUT", help="The same with a smaller artifact that has the same tokens."
)
@click.option("--text", type=PATH, metavar="FILE", help="Where texts for drafts come from.  [default: the model]")
def bench_command(
    artifact: Path,
    threads: int | None,
    numa: str,
    device: str | None,
    gpu_layers: int | None,
    cpu_artifact: Path | None,
    form: str,
    per_op: bool,
    plot: Path | None,
    text: Path | None,
    **options: Any,
) -> None:
    """Measure how fast an ARTIFACT runs on this machine.

    The tests are those of llama-bench: pp512 reads 512 tokens at once, tg128 generates 128 tokens one by one, and
    `@ d4096` means behind 4096 tokens that are in the context already. Speeds are medians ± standard deviation, with
    the slowest and the fastest repetition. `@ b16` generates 16 texts side by side, which reads the weights once for
    all of them.

    Beside them stands what the machine can do, measured in the same run on the same threads: how fast it reads memory
    and how fast it multiplies. Generating is limited by reading the weights, a prompt by multiplying; the shares say
    how close a test came. Weights that fit into the CPU's caches are read faster than memory.

    With --speculate or --draft answers of -n tokens are generated plainly and with drafts in turns, on texts where
    little can be foreseen (a story goes on) and where much can (a passage is repeated), at temperature 0 and 1.

    Leave the machine alone while it measures. -o csv prints further tables behind an empty line.

    \b
    Examples:
      PROGRAM bench OUT
      PROGRAM bench OUT -p 512 -n 128 -d 0,4096 -r 5 -t 2
      PROGRAM bench OUT -p 0 -n 64 -d 0,1024,4096 --plot depth.svg
      PROGRAM bench OUT -p 0 -b 1,4,16 --plot batches.svg
      PROGRAM bench OUT --per-op -o json > bench.json
      PROGRAM bench OUT --speculate mtp --text book.txt
    """
    from dsv3c.runtime.cli.bench_plot import check_plot, write_plot
    from dsv3c.runtime.cli.bench_report import render
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.measure.bench import Bench, Settings
    from dsv3c.runtime.progress import Silent

    placement = Placement(threads, device, gpu_layers, cpu_artifact, numa)
    speculate = drafter(options)
    if speculate is not None:
        _compare(artifact, speculate, text, placement, form, options)
        return
    if text is not None:
        raise click.UsageError("--text goes with --speculate and --draft")
    settings = Settings(**options)
    if not settings.prompts and not settings.generated:
        raise click.UsageError("with -p 0 and -n 0 there is nothing to measure")
    if plot is not None:
        check_plot(plot)
    with Bench(artifact, settings, placement) as bench, terminal_progress() or nullcontext(Silent()) as progress:
        report = _measure(bench, settings, per_op, progress)
    echo(render(report, form), nl=False)
    if plot is not None:
        write_plot(plot, report.results, report.model)


def _measure(bench: Bench, settings: Settings, per_op: bool, progress: Progress) -> Report:
    from dsv3c.runtime.cli.bench_report import Report

    # Before and after, as other programs may run now and then.
    limits = bench.limits(progress)
    results = bench.results(progress)
    breakdowns = bench.breakdowns(progress) if per_op else []
    limits = limits.best(bench.limits(progress))
    return Report.of(bench.artifact.manifest, bench.device.report(), settings, limits, results, breakdowns)


def _compare(
    artifact: Path, speculate: str, text: Path | None, placement: Placement, form: str, options: dict[str, Any]
) -> None:
    """Plain decoding against drafted."""
    from dsv3c.runtime.cli.bench_speculation import Report, render
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.runtime.measure.speculation import Settings, compare, load
    from dsv3c.runtime.measure.windows import read_text
    from dsv3c.runtime.progress import Silent

    _refuse_given("a measurement of drafts", SPECULATE_WITHOUT)
    if len(options["generated"]) != 1 or options["generated"][0] < 2:
        raise click.UsageError("a measurement of drafts takes one number of tokens from 2 on with -n")
    settings = Settings(options["generated"][0], options["repetitions"])
    passages = None if text is None else read_text(text)
    with load(artifact, speculate, placement) as model, terminal_progress() or nullcontext(Silent()) as progress:
        found = compare(model, settings, passages, progress)
        device, drafter = model.session.device.report(), model.engine.report()["speculation"]["drafter"]
        name = str(model.artifact.manifest.model.get("name", "unknown"))
    report = Report(name, device, drafter, None if passages is None else passages.name, settings, found)
    echo(render(report, form), nl=False)


def _refuse_given(what: str, others: tuple[str, ...]) -> None:
    """Raises UsageError where one of the other parameters of the command was given."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in others and source is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{what} does not go with {max(parameter.opts, key=len)}")
