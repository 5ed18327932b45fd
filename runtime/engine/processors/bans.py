"""Ids that cannot come next."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.processors.filters import Floats


class RepeatedNgrams:
    """No `size` tokens in a row stand twice in the text, prompt included."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, logits: Floats, history: History) -> None:
        if len(history) < self._size:
            return
        grams = np.lib.stride_tricks.sliding_window_view(history.tokens, self._size)
        begun = history.tokens[len(history) + 1 - self._size :]
        logits[grams[(grams[:, :-1] == begun).all(axis=1), -1]] = -np.inf


class BadWords:
    """The last id of each word, where the text ends with all ids before it. An end token is never a word."""

    def __init__(self, words: Collection[tuple[int, ...]], end_tokens: frozenset[int]) -> None:
        single = {word[0] for word in words if len(word) == 1}
        self._always = np.array(sorted(single - end_tokens), np.intp)
        self._longer = [(np.array(word[:-1], np.int32), word[-1]) for word in words if len(word) > 1]

    def __call__(self, logits: Floats, history: History) -> None:
        logits[self._always] = -np.inf
        for begin, last in self._longer:
            if begin.size <= len(history) and (history.tokens[-begin.size :] == begin).all():
                logits[last] = -np.inf


class EarlyEnd:
    """No end token before the text has `length` tokens: those of the answer, or the prompt's as well."""

    def __init__(self, length: int, end_tokens: frozenset[int], *, of_answer: bool) -> None:
        self._length, self._of_answer = length, of_answer
        self._ends = np.array(sorted(end_tokens), np.intp)

    def __call__(self, logits: Floats, history: History) -> None:
        length = len(history) - (history.prompt_length if self._of_answer else 0)
        if length < self._length:
            logits[self._ends] = -np.inf


class Tokens:
    """These never."""

    def __init__(self, tokens: Collection[int]) -> None:
        self._tokens = np.array(sorted(tokens), np.intp)

    def __call__(self, logits: Floats, history: History) -> None:
        logits[self._tokens] = -np.inf
