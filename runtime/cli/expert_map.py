"""How often experts are chosen, as a picture: a row for each layer, a column for each expert.

The colour is the root of how many times its even share an expert was chosen: white for never, darkest for four times
as often, or for every token where that is less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.cli.svg import document, text
from dsv3c.runtime.engine.expert_stats import ExpertStats

WIDTH = 960  # of all columns, about
ROW, LEAST, MOST = 14, 2, 24  # height of a row; width of a column
LEFT, RIGHT, TOP, BETWEEN, BOTTOM = 64, 24, 56, 52, 60
LEVELS = 24  # of colour
DARKEST = 4.0  # times the even share
_WHITE, _DARK = (255, 255, 255), (18, 58, 94)
_FRAME, _GREY = "#ccc", "#666"


class Panel(NamedTuple):
    """times [layers, experts]: the even share an expert was chosen."""

    title: str
    times: NDArray[np.float64]


def svg(stats: ExpertStats, model: str, mark: str) -> str:
    """The whole run, and below it the last tokens, where these are not all."""
    layers = sorted(stats.layers)
    panels = [Panel(f"all {stats.tokens} tokens", _times(stats, recent=False))]
    if stats.window_tokens < stats.tokens:
        panels.append(Panel(f"the last {stats.window_tokens} tokens", _times(stats, recent=True)))
    column = min(MOST, max(LEAST, WIDTH // stats.experts))
    height, wide = ROW * len(layers), column * stats.experts
    darkest = min(DARKEST, stats.experts / stats.top_k)
    width = LEFT + max(wide, 360) + RIGHT
    whole = TOP + len(panels) * (height + BETWEEN) + BOTTOM
    parts = [text(LEFT, 24, f"{model}: experts chosen, {stats.top_k} of {stats.experts} a token", "start", 15)]
    for number, panel in enumerate(panels):
        top = TOP + number * (height + BETWEEN)
        parts += [text(LEFT, top - 8, panel.title, "start", 12, _GREY)]
        parts += _cells(panel.times, darkest, top, column)
        parts += [f'<rect x="{LEFT}" y="{top}" width="{wide}" height="{height}" fill="none" stroke="{_FRAME}"/>']
        parts += _row_names(layers, top)
        parts += _column_names(stats.experts, column, top + height + 14)
    parts += _legend(darkest, whole - BOTTOM + 16)
    return document(width, whole, mark, parts)


def _times(stats: ExpertStats, recent: bool) -> NDArray[np.float64]:
    found = [stats.layers[layer] for layer in sorted(stats.layers)]
    counts = np.array([each.window_counts if recent else each.counts for each in found], np.float64)
    even = counts.sum(axis=-1, keepdims=True) / stats.experts
    return counts.reshape(len(found), stats.experts) / np.maximum(even, 1e-9) if found else counts.reshape(0, 0)


def _cells(times: NDArray[np.float64], darkest: float, top: int, column: int) -> Iterator[str]:
    """One path for all cells of a colour; neighbours are one rectangle."""
    levels = np.ceil(np.sqrt(np.minimum(times / darkest, 1)) * LEVELS).astype(int)
    shapes: dict[int, list[str]] = {}
    for row, line in enumerate(levels):
        starts = np.flatnonzero(np.diff(line, prepend=-1))
        for start, end in zip(starts, [*starts[1:], line.size], strict=True):
            if line[start]:
                size = (end - start) * column
                place = f"M{LEFT + start * column} {top + row * ROW}h{size}v{ROW}h-{size}z"
                shapes.setdefault(int(line[start]), []).append(place)
    for level in sorted(shapes):
        yield f'<path fill="{_colour(level / LEVELS)}" d="{"".join(shapes[level])}"/>'


def _colour(part: float) -> str:
    mixed = (round(white + (dark - white) * part) for white, dark in zip(_WHITE, _DARK, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _row_names(layers: list[int], top: int) -> Iterator[str]:
    for row, layer in enumerate(layers):
        yield text(LEFT - 6, top + row * ROW + ROW - 3, str(layer), "end", 10)
    middle = top + len(layers) * ROW / 2
    yield text(16, middle, "layer", "middle", 11, turn=f' transform="rotate(-90 16 {middle:.1f})"')


def _column_names(experts: int, column: int, y: int) -> Iterator[str]:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1 << 20) if step * column >= 28)
    for expert in range(0, experts, step):
        yield text(LEFT + (expert + 0.5) * column, y, str(expert), "middle", 10)
    yield text(LEFT - 6, y, "expert", "end", 10)


def _legend(darkest: float, y: int) -> Iterator[str]:
    size = 8
    for level in range(LEVELS + 1):
        yield f'<rect x="{LEFT + level * size}" y="{y}" width="{size}" height="10" fill="{_colour(level / LEVELS)}"/>'
    yield f'<rect x="{LEFT}" y="{y}" width="{(LEVELS + 1) * size}" height="10" fill="none" stroke="{_FRAME}"/>'
    even = LEFT + (LEVELS * (1 / darkest) ** 0.5 + 0.5) * size
    for x, name in ((LEFT, "never"), (even, "even share"), (LEFT + (LEVELS + 1) * size, f"{darkest:.3g} times it")):
        yield text(x, y + 24, name, "middle", 10, _GREY)
