"""What an answer consists of, as it is told while it is written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class CallBegun:
    """A tool is called; its arguments follow, up to the next piece of another kind."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of the call that was begun last: JSON, unless the model wrote none or was cut off."""

    text: str


Piece = Text | Thought | CallBegun | CallArguments


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of a kind as one, empty ones left out."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(piece, CallBegun):
            found.append(piece)
        elif isinstance(last, type(piece)):
            found[-1] = type(piece)(last.text + piece.text)
        elif piece.text:
            found.append(piece)
    return found
