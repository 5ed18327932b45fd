"""A draft model reads what it is asked to, and no more. Model and draft are the toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c.runtime.engine.cache import PagePool, Sequence
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.engine.session import Session
from dsv3c.runtime.engine.speculation.draft_model import ModelDrafter
from tests.runtime import toy
from tests.runtime.engine_checks import Text

GREEDY = SamplingParams(temperature=0)
TEXT = list(range(3, 33))


def text(tokens: list[int]) -> Text:
    return Text(Lane(Sequence(PagePool(32, 4), 32), History(np.array(tokens, np.int32))), Sampler(GREEDY, toy.VOCAB))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    plan = toy.toy_artifact(tmp_path / "draft").plan  # 64 tokens of context
    return Session(plan, toy.ToyDevice(plan, 256), toy.VOCAB)


def tokens_read(session: Session) -> int:
    assert isinstance(session.device, toy.ToyDevice)
    return sum(tokens for _, tokens, _ in session.device.steps)


def greedy(tokens: list[int], count: int) -> list[int]:
    found = list(tokens)
    for _ in range(count):
        found.append(int(toy.expected_logits(found)[-1].argmax()))
    return found[len(tokens) :]


def test_it_is_behind_by_all_of_a_text_that_it_was_not_asked_about(session: Session) -> None:
    drafter = ModelDrafter(session)
    assert drafter.behind(text(TEXT).lane) == len(TEXT)
    assert tokens_read(session) == 0


def test_it_reads_the_last_tokens_that_it_may_and_drafts_from_them(session: Session) -> None:
    drafter, one = ModelDrafter(session), text(TEXT)
    assert drafter.read([one.lane], 8) == 7
    assert (drafter.behind(one.lane), tokens_read(session)) == (1, 7)
    assert drafter.propose([one], 3)[0].tolist() == greedy(TEXT[-8:], 3)
    assert tokens_read(session) == 7 + 3


def test_it_reads_the_whole_text_where_it_may(session: Session) -> None:
    drafter, one = ModelDrafter(session), text(TEXT)
    assert drafter.read([one.lane], 1000) == len(TEXT) - 1
    assert drafter.propose([one], 2)[0].tolist() == greedy(TEXT, 2)


def test_it_reads_only_what_it_lacks_and_rolls_back_what_was_wrong(session: Session) -> None:
    drafter, one = ModelDrafter(session), text(TEXT)
    drafter.read([one.lane], 1000)
    drafter.propose([one], 3)
    for token in (40, 41, 42, 43):
        one.lane.history.append(token)
    assert drafter.behind(one.lane) == 4
    before = tokens_read(session)
    assert drafter.read([one.lane], 1000) == 3
    assert tokens_read(session) - before == 3
    assert drafter.propose([one], 1)[0].tolist() == greedy([*TEXT, 40, 41, 42, 43], 1)


def test_a_text_longer_than_its_context_is_drafted_for_from_its_last_half(session: Session) -> None:
    tokens = [3 + number % 40 for number in range(90)]
    drafter, one = ModelDrafter(session), text(tokens)
    assert drafter.read([one.lane], 1000) == 31
    assert drafter.propose([one], 2)[0].tolist() == greedy(tokens[-32:], 2)


def test_a_window_that_slid_is_read_again(session: Session) -> None:
    drafter, one = ModelDrafter(session), text(TEXT)
    drafter.read([one.lane], 8)
    one.lane.slide(4, 12)
    assert drafter.behind(one.lane) == 12
    drafter.read([one.lane], 1000)
    assert drafter.propose([one], 2)[0].tolist() == greedy([*TEXT[:4], *TEXT[-8:]], 2)


def test_a_text_that_leaves_gives_its_pages_back(session: Session) -> None:
    drafter, one = ModelDrafter(session), text(TEXT)
    drafter.read([one.lane], 1000)
    assert session.pool.free_pages < session.pool.pages
    drafter.forget(one.lane)
    assert session.pool.free_pages == session.pool.pages
