"""What commands print: sizes, aligned columns, JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from dsv3c.runtime.errors import RuntimeFault


class OutputLost(RuntimeFault):
    message = "cannot write the output: {reason}"
    hint = "make room, or send it elsewhere"


UNITS = ("kB", "MB", "GB", "TB")
QUANTITY = re.compile(r"[\d.]+( [\w/]+){0,2}")  # a number with its unit


def echo(text: str | bytes = "", nl: bool = True, err: bool = False) -> None:
    """Print to stdout, or stderr. Raises OutputLost when it cannot be written, BrokenPipeError when nobody reads it.

    A closed stderr is a wish for silence, a closed stdout is a result that is lost.
    """
    if sys.stderr is None and err:
        return
    if sys.stdout is None and not err:
        raise OutputLost(reason="stdout is closed")
    with writing_output():
        click.echo(text, nl=nl, err=err)


@contextmanager
def writing_output() -> Iterator[None]:
    """Raises OutputLost for what the system has against a write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(reason=error.strerror) from error


def size(count: float) -> str:
    """Bytes with three significant digits in decimal units, e.g. "11.2 MB"."""
    if count < 1000:
        return f"{count:.0f} B"
    value = count / 1000
    for unit in UNITS:
        # 999.5 would be shown as 1000.
        if value < 999.5 or unit == UNITS[-1]:
            break
        value /= 1000
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def number(count: int) -> str:
    """A count with three significant digits, e.g. "1.03 trillion"."""
    value, unit = float(count), ""
    for larger in ("thousand", "million", "billion", "trillion"):
        # 999.5 would be shown as 1e+03.
        if value < 999.5:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"


def section(title: str, rows: Iterable[Sequence[object]]) -> None:
    """A heading and its rows, the cells aligned in columns; nothing when there are no rows."""
    lines = columns(rows)
    if lines:
        echo("\n".join([title, *(f"  {line}" for line in lines)]))


def columns(rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows of cells as aligned lines. Numbers with a unit stand right, all else left; the last cell is not padded."""
    cells = [[str(cell) for cell in row] for row in rows]
    count = max((len(row) for row in cells), default=0)
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(count)]
    right = [all(_numeric(row[i]) for row in cells if i < len(row)) for i in range(count)]
    lines = []
    for row in cells:
        padded = [cell.rjust(widths[i]) if right[i] else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _numeric(cell: str) -> bool:
    return not cell or QUANTITY.fullmatch(cell) is not None


def print_json(value: Any) -> None:
    echo(json.dumps(value, indent=2, ensure_ascii=False))
