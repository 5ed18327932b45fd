"""Speed over the depth of the context, or over the size of the batch, as a picture: SVG written here, PNG drawn by
matplotlib."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3c.runtime.cli.own_files import check_place, write_whole
from dsv3c.runtime.cli.svg import COLOURS, above, document, nice_step, stroke, text, ticks
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.measure.bench import Case, Result

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 56, 56
MARK = "drawn by dsv3c bench"  # in every picture, so that nothing else is overwritten

Line = tuple[str, list[tuple[int, Result]]]


@dataclass(frozen=True)
class Chart:
    """Lines by name, each of points (x, result) from left to right; over what they are drawn, and what x counts."""

    over: str
    unit: str
    lines: list[Line]


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
    """Write the picture that the suffix of `path` asks for: median tokens a second with the range, over the size of the
    batch where there are several, else over depth.

    Decode is drawn; prefill only where nothing was decoded, as its speeds are of another order.
    """
    chart = chart_of(results)
    title = f"{model}: speed over {chart.over}"
    picture = _png(chart, title) if path.suffix.lower() == ".png" else svg(chart, title).encode()
    check_plot(path)
    write_whole(path, picture)


def chart_of(results: Sequence[Result]) -> Chart:
    """Results that differ in one size alone are a line, under the name of the test without it."""
    kind = "tg" if any(result.kind == "tg" for result in results) else "pp"
    drawn = [result for result in results if result.kind == kind]
    batches = len({result.sequences for result in drawn}) > 1
    lines: dict[str, list[tuple[int, Result]]] = {}
    for result in drawn:
        case = Case(kind, result.tokens, result.depth if batches else 0, 1 if batches else result.sequences)
        lines.setdefault(case.name, []).append((result.sequences if batches else result.depth, result))
    over, unit = ("batch size", "sequences side by side") if batches else ("depth", "tokens in the context")
    return Chart(over, unit, [(name, sorted(line, key=lambda point: point[0])) for name, line in lines.items()])


def svg(chart: Chart, title: str) -> str:
    """An SVG document: axes from 0, a line with a range bar at each point for each test."""
    points = [point for _, line in chart.lines for point in line]
    farthest = max(place for place, _ in points) or 1
    fastest = max(max(result.speeds) for _, result in points)
    x_step, y_step = nice_step(farthest), nice_step(fastest)
    x_end, y_end = above(farthest, x_step), above(fastest, y_step)

    def x(place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * place / x_end

    def y(speed: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * speed / y_end

    parts = [text(LEFT, 28, title, "start", 16)]
    for tick in ticks(x_end, x_step):
        parts.append(text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in ticks(y_end, y_step):
        parts.append(stroke(LEFT, y(tick), WIDTH - RIGHT, y(tick), "#888" if tick == 0 else "#ddd"))
        parts.append(text(LEFT - 8, y(tick) + 4, f"{tick:g}", "end"))
    parts.append(stroke(LEFT, y(0), LEFT, y(y_end), "#888"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, chart.unit, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(20, middle, "tokens per second", "middle", turn=f' transform="rotate(-90 20 {middle:.1f})"'))
    for number, (name, line) in enumerate(chart.lines):
        colour = COLOURS[number % len(COLOURS)]
        corners = " ".join(f"{x(place):.1f},{y(result.median):.1f}" for place, result in line)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for place, result in line:
            at = x(place)
            parts.append(stroke(at, y(min(result.speeds)), at, y(max(result.speeds)), colour))
            parts.append(f'<circle cx="{at:.1f}" cy="{y(result.median):.1f}" r="3.5" fill="{colour}"/>')
        parts.append(text(WIDTH - RIGHT, 28 + 16 * number, name, "end", colour=colour))
    return document(WIDTH, HEIGHT, MARK, parts)


def _png(chart: Chart, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=150)
    axes = figure.add_subplot(title=title, xlabel=chart.unit, ylabel="tokens per second")
    for number, (name, line) in enumerate(chart.lines):
        places, medians = [place for place, _ in line], [result.median for _, result in line]
        below = [result.median - min(result.speeds) for _, result in line]
        above = [max(result.speeds) - result.median for _, result in line]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(places, medians, yerr=[below, above], label=name, color=colour, marker="o", capsize=3)
    axes.set_ylim(bottom=0)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": MARK})
    return picture.getvalue()
