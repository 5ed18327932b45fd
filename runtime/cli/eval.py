"""`eval`: how well an artifact predicts a text, and how far it is from another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo, print_json, section
from dsv3c.runtime.cli.params import PATH, device_options, json_option, numa_option, threads_option

if TYPE_CHECKING:
    from dsv3c.runtime.measure.quality import Report
    from dsv3c.runtime.progress import Progress

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def estimates(*names: str) -> tuple[str, ...]:
    """Keys of figures that have a standard error."""
    return tuple(key for name in names for key in (name, f"{name}_error"))


QUANTILES = {"median": "kl_median", "90 %": "kl_90", "99 %": "kl_99", "largest": "kl_max"}
DIVERGENCE = (*estimates("reference", "ratio", "nll_change", "kl", "top1"), *QUANTILES.values(), "logit_error")

_COUNTING = (
    click.option(
        "--text",
        "texts",
        type=PATH,
        multiple=True,
        required=True,
        metavar="FILE",
        help="Plain text in UTF-8 to predict. Repeatable.",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=2),
        metavar="N",
        help="Tokens of a window.  [default: 512, or as many as the model takes]",
    ),
    click.option(
        "--bos",
        type=click.Choice(["text", "window"]),
        default="text",
        show_default=True,
        help="Where the BOS stands, if the tokenizer has one: before the text, or before each window.",
    ),
    click.option(
        "--tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Predict only so many, from the beginning of each text.  [default: all]",
    ),
)


def counting_options(command: Decorated) -> Decorated:
    """Adds the options `texts`, `context`, `bos` and `tokens`."""
    for option in reversed(_COUNTING):
        command = option(command)
    return command


HELP = """Measure how well an ARTIFACT predicts a text, and how far it is from another one.

Perplexity is the exponential of the mean negative log-likelihood of the text's tokens. The text is cut into windows
of --context tokens, each of which the model reads without those before; all of a window's predictions count, those
of its first tokens too, and so does a last, shorter window.

With --against, how far the predictions are from those of that model: KL divergence of its next-token distributions
from this one's, in nats; how often both have the same first choice; the largest difference of two logits; the ratio
of perplexities. Errors are standard errors, that of the ratio from the paired differences.
"""
_EXAMPLES = """
\b
Examples:
  PROGRAM eval OUT --text book.txt
  PROGRAM eval OUT-int4 --against OUT-float32 --text book.txt --json
"""


@click.command("eval", cls=Command, help=HELP + _EXAMPLES)
@click.argument("artifact", type=PATH)
@counting_options
@click.option("--against", type=PATH, metavar="OTHER", help="The model to compare with: an artifact.")
@threads_option()
@numa_option
@device_options
@json_option
def eval_command(artifact: Path, against: Path | None, as_json: bool, **options: Any) -> None:
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.runtime.progress import Silent

    if against is not None:
        require_artifact(against)
    with terminal_progress() or nullcontext(Silent()) as progress:
        report = measure(artifact, against, str(against), progress, **options)
    show_report(artifact, report, as_json)


def require_artifact(path: Path) -> None:
    """Raises CompilerNeeded for a checkpoint, which only the compiler's own command makes an artifact of."""
    from dsv3c.runtime.errors import CompilerNeeded

    if (path / "config.json").is_file() and not (path / "manifest.json").exists():
        raise CompilerNeeded(path=path)


def measure(
    artifact: Path,
    against: Path | None,
    against_name: str,
    progress: Progress,
    texts: tuple[Path, ...],
    context: int | None,
    bos: Any,
    tokens: int | None,
    **placement: Any,
) -> Report:
    """What the options of the command ask for."""
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.measure.quality import evaluate
    from dsv3c.runtime.measure.windows import Settings

    settings = Settings(context, bos, tokens)
    return evaluate(artifact, texts, settings, Placement(**placement), against, progress, against_name)


def show_report(artifact: Path, report: Report, as_json: bool) -> None:
    if as_json:
        print_json({"artifact": str(artifact), **report.to_dict()})
        return
    show_figures(str(artifact), report.to_dict())


def show_figures(title: str, report: dict[str, Any]) -> None:
    """Print what `Report.to_dict` gives, as it is or from a manifest."""
    against = f", against {report['against']}" if report["against"] else ""
    echo(f"{title} on {report['device']}, windows of {report['context']} tokens{against}")
    for quality in report["texts"]:
        section(f"{quality['text']}, {quality['tokens']} predictions", figure_rows(quality))


def figure_rows(quality: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and figures of each line about one text."""
    rows = [
        ("perplexity", _estimate(quality, "perplexity", ".4f")),
        ("negative log-likelihood", f"{_estimate(quality, 'nll', '.5f')} nats a token"),
    ]
    other = quality.get("against")
    if other is None:
        return rows
    ratio = _estimate(other, "ratio", ".5f")
    change = f" ({other['ratio'] - 1:+.2%})" if other["ratio"] is not None else ""
    quantiles = [f"{name} {_number(other[key], '.3g')}" for name, key in QUANTILES.items()]
    return [
        *rows,
        ("perplexity of the other", _estimate(other, "reference", ".4f")),
        ("ratio of perplexities", ratio + change),
        ("KL divergence", f"{_estimate(other, 'kl', '.3g')} nats; " + ", ".join(quantiles)),
        ("same first choice", _estimate(other, "top1", ".2%")),
        ("largest logit error", _number(other["logit_error"], ".3g")),
    ]


def _estimate(figures: dict[str, Any], name: str, form: str) -> str:
    error = ".2g" if form.endswith("g") else form
    return f"{_number(figures[name], form)} ± {_number(figures[f'{name}_error'], error)}"


def _number(value: float | None, form: str) -> str:
    """None stands for what is infinite."""
    return "infinite" if value is None else format(value, form)
