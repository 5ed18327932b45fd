"""Bits per weight of each layer and role of a plan, as SVG."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dsv3c.compiler.driver.workplace import write_whole
from dsv3c.compiler.errors import ForeignFileError, UnwritableOutputError
from dsv3c.compiler.quantisation.quant_plan import PlannedWeight, QuantPlan
from dsv3c.runtime.cli.svg import document, text

MARK = "drawn by dsv3c plan"  # in every picture, so that nothing else is overwritten
LEFT, TOP, BOTTOM, CELL_WIDTH, CELL_HEIGHT = 170, 60, 40, 44, 26
LEAST_WIDTH = 620
# From few bits to many: what the hue says is said by the number in the cell too.
SHADES = ((2.5, "#f4a582"), (3.5, "#fddbc7"), (4.3, "#e3eef5"), (5.0, "#b8d8e8"), (6.5, "#7fb8d4"), (9.0, "#4393c3"))
MOST = "#2166ac"
_HEAD = 1 << 12
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def check_plot(path: Path) -> None:
    """Before any work: raises ForeignFileError for another file than an earlier picture, UnwritableOutputError."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UnwritableOutputError(path=path, reason=f"{folder} is no folder that this user may write to")
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:_HEAD]):
        raise ForeignFileError(path=path, kind="a picture of `dsv3c plan`")


def draw(path: Path, plan: QuantPlan, model: str) -> None:
    check_plot(path)
    write_whole(path, svg(plan, model))


def svg(plan: QuantPlan, model: str) -> str:
    """A row for each role, a column for each layer; below them what is of no layer."""
    cells, alone = _cells(plan)
    roles, layers = list(cells), sorted({layer for row in cells.values() for layer in row})
    width = max(LEAST_WIDTH, LEFT + CELL_WIDTH * len(layers) + 24)
    height = TOP + CELL_HEIGHT * len(roles) + BOTTOM
    parts = [text(16, 28, f"{model}: {plan.bits():.2f} bits for each linear weight", "start", 16)]
    for column, layer in enumerate(layers):
        parts.append(text(LEFT + CELL_WIDTH * (column + 0.5), TOP - 8, str(layer), "middle"))
    for row, role in enumerate(roles):
        top = TOP + CELL_HEIGHT * row
        parts.append(text(LEFT - 8, top + 17, role, "end"))
        for layer, weight in cells[role].items():
            parts += _cell(LEFT + CELL_WIDTH * layers.index(layer), top, weight)
    others = ", ".join(f"{row.weight.name} {row.format}" for row in alone)
    parts.append(text(LEFT, height - 14, f"layers of the model from left to right; {others}", "start"))
    return document(width, height, MARK, parts)


def shade(bits: float) -> str:
    return next((colour for most, colour in SHADES if bits < most), MOST)


def _cells(plan: QuantPlan) -> tuple[dict[str, dict[int, PlannedWeight]], list[PlannedWeight]]:
    """The rows of a plan by role and layer, and those of no layer."""
    cells: dict[str, dict[int, PlannedWeight]] = {}
    alone = []
    for row in plan.rows:
        found = _LAYER.fullmatch(row.weight.name)
        if found:
            cells.setdefault(found[2], {})[int(found[1])] = row
        else:
            alone.append(row)
    return cells, alone


def _cell(left: float, top: float, row: PlannedWeight) -> list[str]:
    place = f'x="{left + 1:.1f}" y="{top + 1:.1f}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}"'
    colour = "#fff" if shade(row.bits) == MOST else "#222"
    tip = f"<title>{row.weight.name}: {row.format}, {row.bits:.2f} bits a weight</title>"
    number = text(left + CELL_WIDTH / 2, top + 17, f"{row.bits:.2f}", "middle", 11, colour)
    return [f'<g><rect {place} rx="3" fill="{shade(row.bits)}"/>{tip}', number, "</g>"]
