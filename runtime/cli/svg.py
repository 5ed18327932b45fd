"""Pictures with axes as SVG, written by hand: what drawing them shares."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#6d597a", "#b5838d", "#3d405b")  # of one line each, in turn
TICKS = 5


def document(width: int, height: int, mark: str, parts: Iterable[str]) -> str:
    """The whole file. mark: a comment near its beginning, by which the picture is known again."""
    body = "\n".join(f"  {part}" for part in parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head += f' font-family="sans-serif">\n  <!-- {mark} -->'
    return f'{head}\n  <rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'


def nice_step(largest: float) -> float:
    """The distance between ticks, 1, 2 or 5 times a power of ten, that takes at most TICKS to reach `largest`."""
    step = 1e-6
    while True:
        for factor in (1, 2, 5):
            if step * factor * TICKS >= largest:
                return step * factor
        step *= 10


def above(value: float, step: float) -> float:
    """The first tick that is not below a value."""
    return -(-value // step) * step


def ticks(end: float, step: float) -> list[float]:
    return [step * i for i in range(round(end / step) + 1)]


def text(x: float, y: float, words: str, anchor: str, points: int = 12, colour: str = "#222", turn: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{points}" fill="{colour}"'
    return f"<text {place}{turn}>{escape(words)}</text>"


def stroke(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
