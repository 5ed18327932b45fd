"""The table of a sweep as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.driver.sweep import Row, Table
from dsv3c.compiler.driver.workplace import write_whole
from dsv3c.compiler.errors import SweepFileError, UnwritableOutputError
from dsv3c.runtime.cli.eval import DIVERGENCE, estimates
from dsv3c.runtime.cli.output import size

_MARK = "<!-- dsv3c eval --sweep -->"
_COLUMNS = ("format", "method", "bits_per_weight", "weights_bytes", "compile_seconds", "device")
_FIGURES = ("text", "tokens", *estimates("nll", "perplexity"))
_HEADER = ",".join((*_COLUMNS, *_FIGURES, *DIVERGENCE))


def check_tables(paths: Iterable[Path]) -> None:
    """Before any work: raises SweepFileError for a file that is there and is no such table, UnwritableOutputError."""
    for path in paths:
        folder = path.resolve().parent
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            raise UnwritableOutputError(path=path, reason=f"{folder} is no folder that this user may write to")
        if not path.exists():
            continue
        if path.suffix.lower() == ".json":
            Table.read(path)
            continue
        begin = {".md": _MARK, ".csv": _HEADER}[path.suffix.lower()].encode()
        if not path.is_file() or path.read_bytes()[: len(begin)] != begin:
            raise SweepFileError(path=path, reason="it is something else")


def write_tables(paths: Iterable[Path], table: Table) -> None:
    """Each file in the form that its suffix asks for."""
    forms: Mapping[str, Callable[[Table], str]] = {
        ".md": lambda table: f"{_MARK}\n{markdown(table)}",
        ".csv": comma_separated,
    }
    for path in paths:
        if path.suffix.lower() == ".json":
            table.write(path)
        else:
            write_whole(path, forms[path.suffix.lower()](table))


def markdown(table: Table) -> str:
    """A line that says what was measured, and the table."""
    texts = [text["text"] for text in table.measured["texts"]]
    head = ["format", "method", "bits/weight", "size"]
    head += [cell for text in texts for cell in (f"Δ perplexity, {text}", "KL", "same first choice")]
    lines = [_line([*head, "compiled in"]), _line(["---"] * (len(head) + 1))]
    lines += [_line(_cells(row)) for row in table.rows]
    return f"{_caption(table)}\n\n" + "\n".join(lines) + "\n"


def comma_separated(table: Table) -> str:
    """A line for each row and text."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    out.write(_HEADER + "\n")
    for row in table.rows:
        for text in row.texts:
            figures = [text[name] for name in _FIGURES] + [text["against"][name] for name in DIVERGENCE]
            writer.writerow([getattr(row, name) for name in _COLUMNS] + figures)
    return out.getvalue()


def _caption(table: Table) -> str:
    said = f"{table.model} against float32, windows of {table.measured['context']} tokens"
    if not table.rows:
        return said
    texts = [f"{each['text']} {_number(each['against']['reference'], '.4f')}" for each in table.rows[0].texts]
    return f"{said}; perplexity of float32: {', '.join(texts)}"


def _cells(row: Row) -> list[str]:
    cells = [row.format, row.method, f"{row.bits_per_weight:.2f}", size(row.weights_bytes)]
    for text in row.texts:
        cells += _figures(text["against"])
    return [*cells, f"{row.compile_seconds:.0f} s"]


def _figures(against: Mapping[str, Any]) -> list[str]:
    ratio, error = against["ratio"], against["ratio_error"]
    change = "infinite" if ratio is None or error is None else f"{ratio - 1:+.2%} ± {error:.2%}"
    return [
        change,
        f"{_number(against['kl'], '.3g')} ± {_number(against['kl_error'], '.1g')}",
        f"{against['top1']:.1%}",
    ]


def _number(value: float | None, form: str) -> str:
    return "infinite" if value is None else format(value, form)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
