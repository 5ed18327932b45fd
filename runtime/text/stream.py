"""Text as it is generated: no split characters, nothing lost, and stop strings found across token borders."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

Decode = Callable[[Many[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes, so at most 3 may stand at the end as broken ones and still become a character.
_PENDING = 3
_HELD_LIMIT = 32
_CONTEXT_LIMIT = 8


class StreamDecoder:
    """Decodes one token at a time. All texts joined equal the decoding of all tokens at once.

    Text that a later token may still change is held back: a character whose bytes are not complete.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []  # tokens already given out; some decoders look at what stands before
        self._before = 0  # characters of the context's text
        self._held: list[int] = []
        self._given = 0  # characters of the held tokens' text that were given out

    def push(self, token: int) -> str:
        """Text that is certain after this token; may be empty."""
        self._held.append(token)
        text = self._text()
        stable = _without_pending(text)
        piece = stable[self._given :]
        self._given = max(self._given, len(stable))
        if text and stable == text:
            self._continue_after(text)
        elif len(self._held) > _HELD_LIMIT:
            self._shorten()
        return piece

    def flush(self) -> str:
        """What is still held back, as the whole text has it."""
        text = self._text()
        piece = text[self._given :]
        self._follow([])
        self._held, self._given = [], 0
        return piece

    def _text(self) -> str:
        return self._decode(self._context + self._held)[self._before :] if self._held else ""

    def _continue_after(self, text: str) -> None:
        """All that is held is given out. It becomes context, beside what is that already: one decoding a token is
        enough then, since the length of their text is known."""
        if len(self._context) < _CONTEXT_LIMIT:
            self._context += self._held
            self._before += len(text)
        else:
            self._follow(self._held)
        self._held, self._given = [], 0

    def _follow(self, context: list[int]) -> None:
        self._context, self._before = context, len(self._decode(context)) if context else 0

    def _shorten(self) -> None:
        # A long run that is no UTF-8, or tokens without text: keep the cost of a token constant. A cut is safe where
        # both sides decode to what they are together, and where it lies in what was given out.
        for cut in range(len(self._held) - 8, len(self._held) - 4):
            head, tail = self._held[:cut], self._held[cut:]
            length = len(self._decode(head))
            whole = self._decode(head + tail)
            if self._decode(tail) == whole[length:] and length <= self._given and not self._needs_context(head, tail):
                self._follow(head[-8:])
                self._held, self._given = tail, self._given - length
                return

    def _needs_context(self, head: list[int], tail: list[int]) -> bool:
        before = len(self._decode(head[-8:]))
        return self._decode(head[-8:] + tail)[before:] != self._decode(tail)


def _without_pending(text: str) -> str:
    end = len(text)
    while end > len(text) - _PENDING and text.endswith(_REPLACEMENT, 0, end):
        end -= 1
    return text[:end]


class StopFilter:
    """Ends a text before the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: Many[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that is certainly not part of a stop string. Sets `stopped` when one was found."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        self._held += text
        found = [position for stop in self._stops if (position := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            piece, self._held = self._held[: min(found)], ""
            return piece
        keep = max(self._overlap(stop) for stop in self._stops)
        piece, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return piece

    def flush(self) -> str:
        """What is still held back when the text ends."""
        piece, self._held = self._held, ""
        return piece

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
