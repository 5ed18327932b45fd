"""KL divergence over bits per weight, of all rows of a sweep, as SVG."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from dsv3c.compiler.driver.sweep import Row, Table
from dsv3c.compiler.driver.workplace import write_whole
from dsv3c.compiler.errors import ForeignFileError, UnwritableOutputError
from dsv3c.runtime.cli.svg import COLOURS, above, document, nice_step, stroke, text, ticks

WIDTH, HEIGHT = 820, 520
LEFT, RIGHT, TOP, BOTTOM = 84, 110, 56, 56
MARK = "drawn by dsv3c eval"  # in every picture, so that nothing else is overwritten
_HEAD = 1 << 12
_NUDGE = 5.0  # of a label to the right of its point

Point = tuple[Row, float]  # and its KL


def check_plot(path: Path) -> None:
    """Before any work: raises ForeignFileError for another file than an earlier picture, UnwritableOutputError."""
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UnwritableOutputError(path=path, reason=f"{folder} is no folder that this user may write to")
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:_HEAD]):
        raise ForeignFileError(path=path, kind="a picture of `dsv3c eval`")


def draw(path: Path, table: Table) -> None:
    check_plot(path)
    write_whole(path, svg(table))


def svg(table: Table) -> str:
    """Of the first text: a line for each method, a point for each format, KL on a logarithmic axis.

    A row whose KL is 0, as that of float32 itself, has no place on it.
    """
    name = table.measured["texts"][0]["text"]
    points = [(row, float(kl)) for row in table.rows if (kl := row.texts[0]["against"]["kl"])]
    title = f"{table.model}: KL from float32 on {name} over size"
    heading = text(LEFT, 28, title, "start", 16)
    if not points:
        return document(WIDTH, HEIGHT, MARK, [heading])
    low = math.floor(math.log10(min(kl for _, kl in points)))
    high = math.ceil(math.log10(max(kl for _, kl in points)))
    high = max(high, low + 1)
    step = nice_step(max(row.bits_per_weight for row, _ in points))
    end = above(max(row.bits_per_weight for row, _ in points), step)

    def x(bits: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * bits / end

    def y(kl: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(kl) - low) / (high - low)

    parts = [heading]
    for tick in ticks(end, step):
        parts.append(text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for power in range(low, high + 1):
        parts.append(stroke(LEFT, y(10.0**power), WIDTH - RIGHT, y(10.0**power), "#888" if power == low else "#ddd"))
        parts.append(text(LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g}", "end"))
    parts.append(stroke(LEFT, y(10.0**low), LEFT, y(10.0**high), "#888"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "bits per linear weight", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turn = f' transform="rotate(-90 20 {middle:.1f})"'
    parts.append(text(20, middle, "KL divergence, nats a token", "middle", turn=turn))
    for number, (method, line) in enumerate(_lines(points)):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{x(row.bits_per_weight):.1f},{y(kl):.1f}" for row, kl in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for row, kl in line:
            at, height = x(row.bits_per_weight), y(kl)
            parts.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3.5" fill="{colour}"/>')
            parts.append(text(at + _NUDGE, height - _NUDGE, row.format, "start", 10, colour))
        parts.append(text(WIDTH - 12, 28 + 16 * number, method, "end", colour=colour))
    return document(WIDTH, HEIGHT, MARK, parts)


def _lines(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Points by method, each from few bits to many."""
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point[0].bits_per_weight):
        lines.setdefault(point[0].method, []).append(point)
    return list(lines.items())
