"""The tokens of one text: prompt and answer, roll back, forks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3c.runtime.engine.history import History

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=40)


@given(tokens, tokens, st.data())
def test_it_is_the_lists_of_its_tokens(prompt: list[int], answer: list[int], data: st.DataObject) -> None:
    history = History(np.array(prompt, np.int32))
    for token in answer:
        history.append(token)
    kept = data.draw(st.integers(0, len(answer)))
    other = history.fork()
    other.truncate(len(prompt) + kept)
    other.append(7)
    assert (other.tokens.tolist(), other.generated.tolist()) == ([*prompt, *answer[:kept], 7], [*answer[:kept], 7])
    assert (history.tokens.tolist(), history.generated.tolist()) == (prompt + answer, answer)
    assert (len(history), history.prompt_length) == (len(prompt) + len(answer), len(prompt))


@pytest.mark.parametrize("length", [1, 4])
def test_a_roll_back_stays_within_the_answer(length: int) -> None:
    with pytest.raises(ValueError, match="from 2 to 3"):
        History([1, 2], [3]).truncate(length)
