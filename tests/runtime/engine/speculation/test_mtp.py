"""The layer that drafts begins with the few states that the model gave just before. Model and layer are the toy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.engine.session import Session
from dsv3c.runtime.engine.speculation.mtp import HEARS, MtpDrafter
from tests.runtime import toy
from tests.runtime.engine_checks import Text

TEXT = list(range(3, 23))


@pytest.fixture
def session(tmp_path: Path) -> Session:
    plan = toy.toy_artifact(tmp_path / "model", P=64).plan
    return Session(plan, toy.ToyDevice(plan, 1024), toy.VOCAB)


@pytest.fixture
def one(session: Session) -> Text:
    """A text of which the model has read all but the last token."""
    lane = Lane(session.new_sequence(), History(np.array(TEXT, np.int32)))
    session.reserve(lane.sequence, lane.size)
    lane.sequence.length = len(TEXT) - 1
    return Text(lane, Sampler(SamplingParams(temperature=0), toy.VOCAB))


def step(one: Text, session: Session, token: int) -> None:
    """The model reads the pending token and draws another."""
    session.reserve(one.lane.sequence, one.lane.size)
    one.lane.sequence.length += 1
    one.lane.history.append(token)


def states(count: int) -> Floats:
    return np.ones((count, toy.HIDDEN), np.float32)


def tokens_read(session: Session) -> list[int]:
    assert isinstance(session.device, toy.ToyDevice)
    return [tokens for entry, tokens, _ in session.device.steps if entry == "mtp"]


def test_of_a_long_prompt_it_keeps_and_reads_the_last_states_only(session: Session, one: Text) -> None:
    drafter = MtpDrafter(session)
    drafter.saw(one.lane, 0, states(len(TEXT) - 1))
    assert drafter._states[one.lane].tokens.tolist() == TEXT[-HEARS:]
    assert tokens_read(session) == []
    assert drafter.propose([one], 1)[0].size == 1
    assert tokens_read(session) == [HEARS]


def test_a_text_whose_last_state_it_did_not_hear_has_no_drafts(session: Session, one: Text) -> None:
    drafter = MtpDrafter(session)
    assert drafter.propose([one], 1)[0].size == 0
    drafter.saw(one.lane, 0, states(len(TEXT) - 1))
    step(one, session, 30)
    assert drafter.propose([one], 1)[0].size == 0
    assert tokens_read(session) == []


def test_a_gap_is_passed_over(session: Session, one: Text) -> None:
    drafter = MtpDrafter(session)
    drafter.saw(one.lane, 0, states(len(TEXT) - 1))
    drafter.propose([one], 1)
    for token in (30, 31):
        step(one, session, token)
    drafter.saw(one.lane, one.lane.sequence.length - 1, states(1))
    assert drafter.propose([one], 1)[0].size == 1
    assert tokens_read(session) == [HEARS, 1]
    assert drafter._states[one.lane].sequence.length == HEARS + 1


def test_states_that_nobody_reads_do_not_pile_up(session: Session, one: Text) -> None:
    drafter = MtpDrafter(session)
    for token in range(30, 45):
        step(one, session, token)
        drafter.saw(one.lane, one.lane.sequence.length - 1, states(1))
    assert drafter._states[one.lane].tokens.tolist() == [41, 42, 43, 44]
    assert drafter._states[one.lane].hidden.shape == (HEARS, toy.HIDDEN)


def test_pages_come_back_when_others_need_them_and_when_a_text_leaves(session: Session, one: Text) -> None:
    drafter = MtpDrafter(session)
    free = session.pool.free_pages
    drafter.saw(one.lane, 0, states(len(TEXT) - 1))
    assert session.pool.free_pages == free  # nothing is reserved before it drafts
    drafter.propose([one], 1)
    assert session.pool.free_pages < free
    assert drafter.give_back() and session.pool.free_pages == free
    assert not drafter.give_back()
    step(one, session, 30)
    drafter.saw(one.lane, len(TEXT) - 1, states(1))
    drafter.propose([one], 1)
    drafter.forget(one.lane)
    assert session.pool.free_pages == free


def test_a_plan_with_a_context_shorter_than_its_window_has_drafts_as_long_as_a_text_goes_on(tmp_path: Path) -> None:
    plan = toy.toy_artifact(tmp_path / "short", P=4).plan  # 16 tokens
    session = Session(plan, toy.ToyDevice(plan, 256), toy.VOCAB)
    lane = Lane(Sequence(session.pool, 64), History(np.array(TEXT, np.int32)))
    session.reserve(lane.sequence, lane.size)
    lane.sequence.length = len(TEXT) - 1
    one, drafter = Text(lane, Sampler(SamplingParams(temperature=0), toy.VOCAB)), MtpDrafter(session)
    for token in range(3, 40):
        step(one, session, token)
        drafter.saw(lane, lane.sequence.length - 1, states(1))
        assert drafter.propose([one], 1)[0].size == 1
