"""Steps over a ragged batch: paging, chunks, copy on write and roll back, against a model without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine.session import Request, Session, Want
from tests.runtime import toy
from tests.runtime.toy import expected_logits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.toy_artifact(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def session(artifact: Artifact) -> Session:
    return new_session(artifact)


def new_session(artifact: Artifact, slots: int = 192) -> Session:
    return Session(artifact.plan, toy.ToyDevice(artifact.plan, slots), toy.VOCAB)


def device(session: Session) -> toy.ToyDevice:
    assert isinstance(session.device, toy.ToyDevice)
    return session.device


def request(session: Session, sequence: Any, tokens: list[int], want: Want = "last") -> Request:
    return Request(sequence, session.tokens(tokens), want)


def test_step_fills_the_buffers(session: Session) -> None:
    out = session.step([3, 4, 9], [0, 1, 0], [0, 0, 1], [[2], [0]], [1, 2])
    np.testing.assert_array_equal(out.logits, [expected_logits([3, 4])[1], expected_logits([9])[0]])
    assert out.hidden is not None
    np.testing.assert_array_equal(out.hidden, [[3, 0], [4, 1], [9, 0]])
    assert device(session).inputs["control"][:2].tolist() == [3, 2]


def test_number_of_tokens_picks_the_entry(session: Session) -> None:
    session.step(range(5), range(5), [0] * 5, [[0, 1]], [4])
    session.step(range(6), range(6), [0] * 6, [[0, 1]], [5])
    session.step(range(3), range(3), [0] * 3, [[0, 1]], [], entry="prefill")
    assert device(session).steps == [("decode", 5, 1), ("prefill", 6, 1), ("prefill", 3, 0)]


GOOD: dict[str, Any] = {"tokens": [1, 2], "positions": [0, 1], "sequence": [0, 0], "pages": [[0]], "rows": [1]}


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": []},
        {"tokens": [1] * 9, "positions": [0] * 9, "sequence": [0] * 9},
        {"positions": [0]},
        {"positions": [0, -1]},
        {"positions": [0, 64]},
        {"positions": [0, 4]},
        {"positions": [0, 2**40]},
        {"positions": [0.0, 1.0]},
        {"positions": [[0, 1]]},
        {"sequence": [0, 1]},
        {"sequence": [0, -1]},
        {"sequence": [0]},
        {"pages": []},
        {"pages": [[]]},
        {"pages": [[0]] * 4},
        {"pages": [[48]]},
        {"pages": [[-1]]},
        {"pages": [range(17)]},
        {"rows": [2]},
        {"rows": [-1]},
        {"rows": [0] * 5},
        {"hidden": np.zeros((2, 2), np.float32)},
        {"entry": "mtp"},
        {"entry": "mtp", "hidden": np.zeros((2, 3), np.float32)},
    ],
    ids=str,
)
def test_step_out_of_bounds_never_reaches_the_device(session: Session, change: dict[str, Any]) -> None:
    with pytest.raises(errors.StepInvalid):
        session.step(**{**GOOD, **change})
    assert device(session).steps == []


def test_unknown_entry(session: Session) -> None:
    with pytest.raises(errors.UnknownEntry, match="decode, prefill, mtp"):
        session.step(**GOOD, entry="beam")


@pytest.mark.parametrize("token", [-1, toy.VOCAB, 2**31, 2**63, 10**30])
def test_token_out_of_range(session: Session, token: int) -> None:
    with pytest.raises(errors.TokenOutOfRange, match="position 1"):
        session.tokens([0, token])


@pytest.mark.parametrize("ids", [[0.5], [[1]], ["a"], "text", [None], [True], 3, [[1], [1, 2]], [1, None]], ids=str)
def test_tokens_invalid(session: Session, ids: Any) -> None:
    with pytest.raises(errors.TokensInvalid):
        session.tokens(ids)


def test_long_prompt_runs_in_chunks(session: Session) -> None:
    tokens = [(7 * i) % toy.VOCAB for i in range(29)]
    sequence = session.new_sequence()
    (last,) = session.run([request(session, sequence, tokens)])
    np.testing.assert_array_equal(last, expected_logits(tokens)[-1:])
    assert device(session).steps == [("prefill", 8, 0)] * 3 + [("decode", 5, 1)]
    assert (sequence.length, sequence.pages.size) == (29, 8)


def test_all_logits_run_in_chunks_of_rows(session: Session) -> None:
    tokens = list(range(11))
    (rows,) = session.run([request(session, session.new_sequence(), tokens, "all")])
    np.testing.assert_array_equal(rows, expected_logits(tokens))
    assert [step[1:] for step in device(session).steps] == [(4, 4), (4, 4), (3, 3)]


def test_batch_of_unequal_lengths(session: Session) -> None:
    prompts = [list(range(1 + 5 * i)) for i in range(5)]  # more sequences than a step takes
    sequences = [session.new_sequence() for _ in prompts]
    found = session.run([request(session, s, tokens) for s, tokens in zip(sequences, prompts, strict=True)])
    for rows, tokens in zip(found, prompts, strict=True):
        np.testing.assert_array_equal(rows, expected_logits(tokens)[-1:])


def test_nothing_wanted_and_nothing_to_do(session: Session) -> None:
    sequence = session.new_sequence()
    none, empty = session.run(
        [request(session, sequence, [1, 2], "none"), request(session, session.new_sequence(), [])]
    )
    assert none.shape == empty.shape == (0, toy.VOCAB)
    assert sequence.length == 2
    assert session.run([]) == []


def test_fork_shares_and_copies_on_write(session: Session) -> None:
    first = session.new_sequence()
    session.run([request(session, first, [1, 2, 3, 4, 5, 6])])
    second = first.fork()
    free = session.pool.free_pages
    found = session.run([request(session, first, [7]), request(session, second, [8])])
    np.testing.assert_array_equal(found[0], expected_logits([1, 2, 3, 4, 5, 6, 7])[-1:])
    np.testing.assert_array_equal(found[1], expected_logits([1, 2, 3, 4, 5, 6, 8])[-1:])
    assert first.pages[0] == second.pages[0] and first.pages[1] != second.pages[1]
    assert session.pool.free_pages == free - 1


def test_roll_back_and_go_on(session: Session) -> None:
    sequence = session.new_sequence()
    session.run([request(session, sequence, list(range(10)))])
    sequence.truncate(5)
    (rows,) = session.run([request(session, sequence, [40, 41])])
    np.testing.assert_array_equal(rows, expected_logits([0, 1, 2, 3, 4, 40, 41])[-1:])


def test_out_of_pages_changes_no_sequence(artifact: Artifact) -> None:
    session = new_session(artifact, slots=16)
    first, second = session.new_sequence(), session.new_sequence()
    session.run([request(session, first, [1, 2, 3])])
    with pytest.raises(errors.OutOfPages, match="3 free pages"):
        session.run([request(session, first, [4] * 6), request(session, second, [5] * 9)])
    assert (first.length, second.length, session.pool.free_pages) == (3, 0, 3)


def test_one_sequence_beyond_its_context_changes_none(session: Session) -> None:
    first, second = session.new_sequence(), session.new_sequence(max_pages=1)
    with pytest.raises(errors.ContextOverflow):
        session.run([request(session, first, [1, 2]), request(session, second, [3] * 5)])
    assert session.pool.free_pages == session.pool.pages


def test_failing_device_rolls_back(session: Session) -> None:
    sequence = session.new_sequence()
    session.run([request(session, sequence, [1, 2, 3])])
    device(session).fail_at = 3
    with pytest.raises(RuntimeError, match="the device failed"):
        session.run([request(session, sequence, [4] * 25)])
    assert (sequence.length, session.pool.free_pages) == (3, session.pool.pages - 1)
    device(session).fail_at = None
    (rows,) = session.run([request(session, sequence, [9])])
    np.testing.assert_array_equal(rows, expected_logits([1, 2, 3, 9])[-1:])


def test_caller_who_stops_early_rolls_back(session: Session) -> None:
    sequence = session.new_sequence()
    chunks = session.chunks([request(session, sequence, [4] * 25)])
    next(chunks)
    chunks.close()
    assert (sequence.length, session.pool.free_pages) == (0, session.pool.pages)


def test_a_sequence_twice_or_of_another_session(artifact: Artifact, session: Session) -> None:
    sequence = session.new_sequence()
    with pytest.raises(errors.StepInvalid, match="same sequence"):
        session.run([request(session, sequence, [1]), request(session, sequence, [2])])
    with pytest.raises(errors.PageMisuse, match="another session"):
        session.run([request(session, new_session(artifact).new_sequence(), [1])])


@pytest.mark.parametrize("present", ["decode", "prefill"])
def test_plan_with_one_entry(tmp_path: Path, present: str) -> None:
    content = toy.plan_content()
    content["entries"] = {present: content["entries"][present]}
    session = new_session(Artifact.open(toy.write_artifact(tmp_path / "toy", content)))
    tokens = list(range(13))
    (rows,) = session.run([request(session, session.new_sequence(), tokens)])
    np.testing.assert_array_equal(rows, expected_logits(tokens)[-1:])
    assert {step[0] for step in device(session).steps} == {present}


def test_step_that_turns_out_smaller_than_planned_still_fits_its_entry(tmp_path: Path) -> None:
    content = toy.plan_content(S=1, prefill_at=8)  # one sequence a step: 7 tokens, more than decode takes
    session = new_session(Artifact.open(toy.write_artifact(tmp_path / "toy", content)))
    requests = [request(session, session.new_sequence(), tokens) for tokens in ([0] * 7, [1])]
    session.run(requests)
    assert device(session).steps == [("prefill", 7, 1), ("decode", 1, 1)]


BOUNDS = st.fixed_dictionaries(
    {
        "T": st.integers(1, 9),
        "R": st.integers(1, 5),
        "S": st.integers(1, 3),
        "page_size": st.sampled_from([1, 3, 4]),
        "prefill_at": st.integers(1, 12),
    }
)
WORK = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.integers(0, toy.VOCAB - 1), max_size=7),
            st.sampled_from(["none", "last", "all"]),
        ),
        max_size=3,
        unique_by=lambda item: item[0],
    ),
    min_size=1,
    max_size=4,
)


@given(bounds=BOUNDS, work=WORK)
@settings(max_examples=60)
def test_any_bounds_and_batches_give_the_logits_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, bounds: dict[str, int], work: Any
) -> None:
    content = toy.plan_content(P=64, **bounds)
    session = new_session(Artifact.open(toy.write_artifact(tmp_path_factory.mktemp("toy"), content)))
    sequences = [session.new_sequence() for _ in range(3)]
    histories: list[list[int]] = [[], [], []]
    for batch in work:
        found = session.run([request(session, sequences[i], tokens, want) for i, tokens, want in batch])
        for (i, tokens, want), rows in zip(batch, found, strict=True):
            histories[i] += tokens
            kept = {"none": 0, "last": min(1, len(tokens)), "all": len(tokens)}[want]
            assert rows.shape == (kept, toy.VOCAB)
            if kept:
                np.testing.assert_array_equal(rows, expected_logits(histories[i])[-kept:])


def test_short_contexts_have_entries_of_their_own(tmp_path: Path) -> None:
    """Those of a step of which no token has a longer one, be it of another sequence."""
    content = toy.plan_content(prefill_at=3)
    for name, longest in (("decode", 5), ("prefill", 4)):
        content["entries"][f"short_{name}"] = content["entries"][name] | {"max_context": longest}
    session = new_session(Artifact.open(toy.write_artifact(tmp_path, content)))
    device = session.device
    assert isinstance(device, toy.ToyDevice)
    one, other = session.new_sequence(), session.new_sequence()
    for work in ([(one, 3)], [(one, 2)], [(one, 1)], [(other, 1)], [(one, 1), (other, 1)], [(other, 4)]):
        session.run([request(session, sequence, [1] * count) for sequence, count in work])
    found = [entry for entry, _, _ in device.steps]
    assert found == ["short_prefill", "short_decode", "decode", "short_decode", "decode", "prefill"]
    for position in (4, 5):
        session.step([1], [position], [0], [[0, 1]], [0])
    assert [entry for entry, _, _ in device.steps[-2:]] == ["short_decode", "decode"]


def test_a_device_says_from_where_prefill_pays(session: Session) -> None:
    device = session.device
    assert isinstance(device, toy.ToyDevice)
    device.prefill_min_tokens = 3
    for count in (2, 3):
        session.run([request(session, session.new_sequence(), list(range(1, 1 + count)))])
    assert [entry for entry, _, _ in device.steps] == ["decode", "prefill"]
