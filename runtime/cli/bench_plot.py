"""Speed over the depth of the context as a picture: SVG written here, PNG drawn by matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from dsv3c.runtime.cli.own_files import check_place, write_whole
from dsv3c.runtime.cli.svg import COLOURS, above, document, nice_step, stroke, text, ticks
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.measure.bench import Result

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 56, 56
MARK = "drawn by dsv3c bench"  # in every picture, so that nothing else is overwritten

Line = tuple[str, list[Result]]


class PlotNeedsMatplotlib(RuntimeFault):
    message = "cannot draw {path}: PNG needs the package matplotlib"
    hint = "name the file .svg, which needs nothing, or: pip install matplotlib"


class PlotRefused(RuntimeFault):
    message = "cannot draw {path}: {reason}"
    hint = "name another file with --plot"


def check_plot(path: Path) -> None:
    """Raises PlotNeedsMatplotlib for a PNG without it, PlotRefused for a place that cannot be written to or holds
    another file than an earlier picture; asked before anything is measured."""
    if path.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise PlotNeedsMatplotlib(path=path)
    check_place(path, MARK, PlotRefused)


def write_plot(path: Path, results: Sequence[Result], model: str) -> None:
    """Write the picture that the suffix of `path` asks for: median tokens a second over depth, with the range.

    Decode is drawn; prefill only where nothing was decoded, as its speeds are of another order.
    """
    lines = lines_of(results)
    title = f"{model}: speed over depth"
    picture = _png(lines, title) if path.suffix.lower() == ".png" else svg(lines, title).encode()
    check_plot(path)
    write_whole(path, picture)


def lines_of(results: Sequence[Result]) -> list[Line]:
    """Results of one test at rising depths, under the test's name."""
    kind = "tg" if any(result.kind == "tg" for result in results) else "pp"
    lines: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.depth):
        if result.kind == kind:
            lines.setdefault(f"{kind}{result.tokens}", []).append(result)
    return list(lines.items())


def svg(lines: Sequence[Line], title: str) -> str:
    """An SVG document: axes from 0, a line with a range bar at each depth for each test."""
    results = [result for _, line in lines for result in line]
    deepest = max(result.depth for result in results) or 1
    x_step, y_step = nice_step(deepest), nice_step(max(max(result.speeds) for result in results))
    x_end, y_end = above(deepest, x_step), above(max(max(result.speeds) for result in results), y_step)

    def x(depth: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * depth / x_end

    def y(speed: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * speed / y_end

    parts = [text(LEFT, 28, title, "start", 16)]
    for tick in ticks(x_end, x_step):
        parts.append(text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in ticks(y_end, y_step):
        parts.append(stroke(LEFT, y(tick), WIDTH - RIGHT, y(tick), "#888" if tick == 0 else "#ddd"))
        parts.append(text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(stroke(LEFT, y(0), LEFT, y(y_end), "#888"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "tokens in the context", "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(20, middle, "tokens per second", "middle", turn=f' transform="rotate(-90 20 {middle:.1f})"'))
    for number, (name, line) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(result.depth):.1f},{y(result.median):.1f}" for result in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for result in line:
            at = x(result.depth)
            parts.append(stroke(at, y(min(result.speeds)), at, y(max(result.speeds)), colour))
            parts.append(f'<circle cx="{at:.1f}" cy="{y(result.median):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(text(WIDTH - RIGHT, 28 + 16 * number, name, "end", colour=colour))
    return document(WIDTH, HEIGHT, MARK, parts)


def _png(lines: Sequence[Line], title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150)
    axes = figure.add_subplot(title=title, xlabel="tokens in the context", ylabel="tokens per second")
    for number, (name, line) in enumerate(lines):
        depths, medians = [result.depth for result in line], [result.median for result in line]
        below = [result.median - min(result.speeds) for result in line]
        above = [max(result.speeds) - result.median for result in line]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(depths, medians, yerr=[below, above], label=name, color=colour, marker="o", capsize=3)
    axes.set_ylim(bottom=0)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": MARK})
    return picture.getvalue()
