"""Tables in CSV, and in Markdown that reads well as plain text too, and the numbers in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ABSENT = "–"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """The first `left` columns stand left, the others right."""
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(titles), *body]) for i in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(titles), line(rule), *map(line, body)]) + "\n"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """All rows have the keys of the first, its titles."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def number(value: float | None) -> str:
    """Three significant digits, never an exponent."""
    if value is None:
        return ABSENT
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def percent(share: float | None) -> str:
    return ABSENT if share is None else f"{share:.1%}"


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"
