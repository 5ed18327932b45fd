"""Bans: which ids cannot come next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors import processors_for

VOCAB = 6
ENDS = frozenset([4, 5])


def banned(history: History, ends: frozenset[int] = ENDS, **params: Any) -> set[int]:
    row = np.zeros(VOCAB, np.float32)
    for processor in processors_for(SamplingParams().updated(params), ends):
        processor(row, history)
    return set(np.flatnonzero(row == -np.inf).tolist())


@pytest.mark.parametrize(
    ("prompt", "answer", "size", "expected"),
    [
        ([], [], 1, set()),
        ([3], [1], 1, {1, 3}),
        ([1, 2, 3, 1], [], 2, {2}),
        ([1, 2, 3], [1], 2, {2}),
        ([1, 2, 1, 3], [1], 2, {2, 3}),
        ([1, 1], [], 2, {1}),
        ([1, 2], [3, 1, 2], 3, {3}),
        ([1, 2], [3, 2, 2], 3, set()),
        ([1, 2], [], 3, set()),
        ([1], [], 2, set()),
    ],
    ids=str,
)
def test_no_ngram_comes_twice(prompt: list[int], answer: list[int], size: int, expected: set[int]) -> None:
    assert banned(History(prompt, answer), no_repeat_ngram_size=size) == expected


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 4))
def test_an_id_is_banned_when_it_would_end_an_ngram_that_is_there(tokens: list[int], size: int) -> None:
    there = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    expected = {token for token in range(VOCAB) if (*tokens, token)[-size:] in there}
    assert banned(History(tokens), no_repeat_ngram_size=size) == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([], {0}), ([1], {0, 2}), ([3, 1, 2], {0, 3}), ([1, 2, 1], {0, 2}), ([2], {0})],
    ids=str,
)
def test_a_word_is_banned_at_its_last_id(tokens: list[int], expected: set[int]) -> None:
    words = [[0], [1, 2], [3, 1, 2, 3]]
    assert banned(History(tokens[:1], tokens[1:]), bad_words_ids=words) == expected


def test_an_end_token_is_no_bad_word_by_itself() -> None:
    assert banned(History([1]), bad_words_ids=[[4], [3], [1, 5]]) == {3, 5}
    assert banned(History([1]), frozenset(), bad_words_ids=[[4], [3]]) == {3, 4}


def test_an_answer_does_not_end_before_its_length() -> None:
    for length, expected in ((0, ENDS), (1, ENDS), (2, frozenset()), (3, frozenset())):
        history = History([1, 2, 3], [0] * length)
        assert banned(history, min_new_tokens=2) == expected
        assert banned(history, min_length=5) == expected
    assert banned(History([1]), frozenset(), min_new_tokens=2, min_length=9) == set()


def test_suppressed_tokens_are_banned() -> None:
    assert banned(History(), suppress_tokens=[0, 5]) == {0, 5}
