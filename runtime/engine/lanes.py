"""A lane: one text that grows, and the cache that holds its tokens as far as they have been fed."""

from __future__ import annotations

import numpy as np

from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.session import Ints

NO_TOKENS: Ints = np.zeros(0, np.int32)


class Lane:
    """`history` says what the text is, `sequence` how much of it the cache holds; what it does not is pending.

    Position p of the cache holds token p of the text below `sinks`, and token p + `dropped` from there on: a window
    that slides drops tokens behind those that begin the text (attention sinks, arXiv 2309.17453), and what stays is
    read again at the positions where it now stands. drafts: tokens to be verified in the next step, behind the pending.
    cached: tokens that the prefix cache spared.
    """

    def __init__(self, sequence: Sequence, history: History) -> None:
        self.sequence = sequence
        self.history = history
        self.drafts = NO_TOKENS
        self.sinks = 0
        self.dropped = 0
        self.admitted = False
        self.cached = 0

    @property
    def size(self) -> int:
        """Tokens that the cache is to hold, pending ones included."""
        return self.history.tokens.size - self.dropped

    @property
    def tokens(self) -> Ints:
        """[size] what the cache is to hold."""
        tokens = self.history.tokens
        if not self.dropped:
            return tokens
        return np.concatenate([tokens[: self.sinks], tokens[self.sinks + self.dropped :]])

    @property
    def pending(self) -> Ints:
        length = self.sequence.length
        if length < self.sinks:
            return self.tokens[length:]
        return self.history.tokens[length + self.dropped :]

    @property
    def ready(self) -> bool:
        """Whether the next step of this lane is one that decodes."""
        return self.admitted and self.sequence.length + 1 == self.size

    def slide(self, sinks: int, size: int) -> None:
        """Keep the first `sinks` tokens of the text and so many of its last that `size` are left."""
        self.sequence.truncate(min(sinks, self.sequence.length))
        self.sinks = sinks
        self.dropped = self.history.tokens.size - size

    def fork(self) -> Lane:
        """Another text that begins as this one, on the same pages."""
        other = Lane(self.sequence.fork(), self.history.fork())
        other.sinks, other.dropped, other.admitted, other.cached = self.sinks, self.dropped, self.admitted, self.cached
        return other

    def leave(self) -> None:
        """Give the pages back; what they held is pending again."""
        self.sequence.close()
        self.admitted = False
        self.drafts = NO_TOKENS


def common_length(first: Ints, second: Ints) -> int:
    """How many tokens two texts begin with alike."""
    size = min(first.size, second.size)
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if differ.size else size
