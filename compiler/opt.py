"""`python -m dsv3c.compiler.opt`: read a dump, run passes, print. A tool for whoever works on passes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from dsv3c.compiler.cli.params import target_string
from dsv3c.runtime.cli import group
from dsv3c.runtime.cli.output import columns, echo
from dsv3c.runtime.cli.params import Finite

if TYPE_CHECKING:
    from dsv3c.compiler.core.ir import Graph
    from dsv3c.compiler.core.rewrite import Pass

PROGRAM = "python -m dsv3c.compiler.opt"
_MOST_CHARACTERS = 1 << 26  # the graphs of the largest models have a million


@click.command("opt", context_settings=group.SETTINGS)
@click.argument("graph", metavar="GRAPH")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:OPTION=VALUE,…]",
    help="Run this pass, with these of its fields. Repeatable: they run in order.",
)
@click.option("--target", callback=target_string, default="x86", show_default=True, help="Whose layout and memory.")
@click.option("--verify/--no-verify", default=True, show_default=True, help="Check the graph around each pass.")
@click.option("--evaluate", is_flag=True, help="Compute it before and after in numpy, on the same random values.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random values.")
@click.option(
    "--tolerance",
    type=Finite(min=0),
    default=1e-5,
    show_default=True,
    help="How far results may be apart, as a part of the largest.",
)
def opt_command(
    graph: str, passes: tuple[str, ...], target: str, verify: bool, evaluate: bool, seed: int, tolerance: float
) -> None:
    """Read the dump GRAPH (- for stdin), run passes, print the graph, which parses again.

    `dsv3c compile --dump-to DIR` writes dumps, and a graph is written by hand as easily: its grammar stands in
    compiler/core/ir.py. With --evaluate the exit code is 1 when a result is further off than --tolerance; what is
    computed is a step of four tokens, with weights of their full size.

    \b
    Examples:
      dsv3c compile CHECKPOINT --to fuse-rope --dump-to graphs
      python -m dsv3c.compiler.opt graphs/decode-05-simplify.txt --pass fuse-mla --evaluate
      python -m dsv3c.compiler.opt - --pass fuse-mla:form=materialized --pass fuse-router < graph.txt
    """
    from dsv3c import targets
    from dsv3c.compiler.core.verifier import verify as check
    from dsv3c.compiler.driver import named_passes
    from dsv3c.compiler.errors import BadPassError, UnknownPassError
    from dsv3c.compiler.formats.table import UnknownWeightFormat

    configured = targets.configured(target)
    try:
        sequence = [named_passes.parse(text, configured) for text in passes]
    except (BadPassError, UnknownPassError, UnknownWeightFormat) as error:
        raise click.BadParameter(str(error), param_hint="'--pass'") from error
    before = after = _read(graph, verify)
    told = []
    for item in sequence:
        after, count = item.run(after)
        told.append(f"{item.name}: {count} rewrites")
        if verify:
            check(after, item.phase, item.name)
    echo(f"# {after.name} after {', '.join(told) or 'no pass'}")
    echo(str(after))
    if evaluate:
        _compare(before, after, sequence, seed, tolerance)


def _read(path: str, verify: bool) -> Graph:
    """The graph of a file. Raises BadDumpError, WrongGraphError, OSError."""
    from dsv3c.compiler.core import verifier
    from dsv3c.compiler.core.ir import parse_graph
    from dsv3c.compiler.errors import BadDumpError, IrLineError, VerifyError, WrongGraphError

    named = "stdin" if path == "-" else path
    try:
        with click.open_file(path, encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        graph = parse_graph(text)
        if verify:
            verifier.verify(graph, "fuse", "reading")  # what is legal in any phase is legal in this one
    except UnicodeDecodeError as error:
        raise BadDumpError(path=named, reason="it is no text in UTF-8") from error
    except IrLineError as error:
        if len(text) > _MOST_CHARACTERS:
            raise BadDumpError(path=named, reason="it is too long") from error
        raise BadDumpError(path=f"{named}:{error.number}", reason=f"{error.reason}\n  in: {error.line}") from error
    except VerifyError as error:
        raise WrongGraphError(path=named, reason=error.reason, context=error.context) from error
    return graph


def _compare(before: Graph, after: Graph, passes: Sequence[Pass], seed: int, tolerance: float) -> None:
    """Tell how the results differ, on stderr. Raises OutputsDifferError."""
    from dsv3c.compiler.driver.evaluation import differences
    from dsv3c.compiler.errors import OutputsDifferError

    found = differences(before, after, seed)
    rows = [(item.name, f"{item.part:.2g} of the largest value", f"at {list(item.at)}") for item in found]
    echo("\n".join(columns([("result", "differs by", "most"), *rows])), err=True)
    apart = [item.name for item in found if item.part > tolerance]
    if apart:
        raise OutputsDifferError(tolerance=tolerance, names=", ".join(apart))


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    return group.run(opt_command, args, PROGRAM)


def main() -> NoReturn:
    group.prepare_streams()
    sys.exit(run())


if __name__ == "__main__":
    main()
