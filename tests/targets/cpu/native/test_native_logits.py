"""The native library against the Python runtime: the same kernels in the same order, so the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime.engine.session import Request
from tests.targets.cpu.native.binding import Failure, Model
from tests.targets.cpu.native.conftest import USABLE

VOCAB = 2048


@pytest.fixture(params=USABLE)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DSV3C_ISA", request.param)
    return request.param


def ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("quant", ["int8", "int4-g32"])
def test_logits_are_those_of_the_python_runtime(
    artifact: Callable[[str], Path], level: str, quant: str, threads: int
) -> None:
    folder = artifact(quant)
    native = Model(folder, threads=threads)
    assert (native.info.level.decode(), native.info.threads) == (level, threads)
    with runtime.load(folder, threads=threads) as model:
        prompt = ids(600)  # one step of the entry prefill, one of decode, at every level
        sequence, other = native.sequence(), model.new_sequence()
        for tokens in (prompt, [7], [8], [9, 10]):
            (found,) = native.run((sequence, tokens, "last"))
            (expected,) = model.session.run([Request(other, model.session.tokens(tokens), "last")])
            assert np.array_equal(found, expected)
        assert np.array_equal(native.logits(prompt[:150]), model.logits(prompt[:150]))
        native.free(sequence)
    native.close()


def test_a_ragged_batch_is_cut_into_the_same_steps(folder: Path) -> None:
    native = Model(folder, max_batch=8, threads=1)
    with runtime.load(folder, threads=1, max_batch=8) as model:
        plan = [(700, "last"), (1, "all"), (90, "all"), (0, "last"), (33, "none"), (5, "last")]
        requests, expected = [], []
        for number, (count, want) in enumerate(plan):
            requests.append((native.sequence(), ids(count, number), want))
            expected.append(Request(model.new_sequence(), ids(count, number), want))
        found, expected_logits = native.run(*requests), model.session.run(expected)
        assert [rows.shape for rows in found] == [rows.shape for rows in expected_logits]
        assert all(np.array_equal(a, b) for a, b in zip(found, expected_logits, strict=True))
        for sequence, *_ in requests:
            native.free(sequence)
    native.close()


def test_more_sequences_than_a_step_takes(folder: Path) -> None:
    native = Model(folder, max_batch=8)
    with runtime.load(folder, max_batch=8, threads=native.info.threads) as model:
        requests = [(native.sequence(), ids(5, i), "last") for i in range(11)]
        expected = model.session.run([Request(model.new_sequence(), ids(5, i), "last") for i in range(11)])
        assert all(np.array_equal(a, b) for a, b in zip(native.run(*requests), expected, strict=True))
        for sequence, *_ in requests:
            native.free(sequence)
    native.close()


def test_a_fork_shares_its_past_and_goes_its_own_way(model: Model) -> None:
    prompt = ids(37)
    first = model.sequence()
    model.run((first, prompt, "none"))
    second = model.fork(first, 20)
    (a,), (b,) = model.run((first, [5], "last")), model.run((second, [6], "last"))
    assert np.array_equal(a, alone(model, prompt, 37, [5]))
    assert np.array_equal(b, alone(model, prompt, 20, [6]))
    assert (model.length(first), model.length(second)) == (38, 21)
    model.free(first)
    (c,) = model.run((second, [7], "last"))
    assert np.array_equal(c, alone(model, prompt, 20, [6, 7]))
    model.free(second)


def alone(model: Model, prompt: np.ndarray, kept: int, tokens: list[int]) -> np.ndarray:
    """Logits of the last of `tokens`, one a step, behind the first `kept` of a prompt that was read in one step."""
    sequence = model.sequence()
    model.run((sequence, prompt, "none"))
    model.truncate(sequence, kept)
    for token in tokens:
        (logits,) = model.run((sequence, [token], "last"))
    model.free(sequence)
    return logits


def test_rolling_back_forgets(model: Model) -> None:
    sequence = model.sequence()
    (first,) = model.run((sequence, ids(20), "last"))
    model.run((sequence, ids(30, 1), "none"))
    model.truncate(sequence, 0)
    (again,) = model.run((sequence, ids(20), "last"))
    assert np.array_equal(first, again)
    model.free(sequence)


def test_what_fails_changes_nothing(folder: Path) -> None:
    model = Model(folder, context=40)
    sequence, other = model.sequence(), model.sequence()
    model.run((sequence, ids(10), "none"))
    cases = {
        "CONTEXT_EXCEEDED": [(sequence, ids(31), "last")],
        "BAD_TOKEN": [(sequence, [5, VOCAB], "last")],
        "OUT_OF_PAGES": [(sequence, ids(30), "last"), (other, ids(1), "last")],
        "BAD_ARGUMENT": [(sequence, ids(1), "last"), (sequence, ids(1), "last")],
    }
    for status, requests in cases.items():
        with pytest.raises(Failure) as failed:
            model.run(*requests)
        assert failed.value.status == status
        assert (model.length(sequence), model.length(other)) == (10, 0)
    with pytest.raises(Failure, match=r"token id -1 at position 0 is not in 0\.\.2047"):
        model.run((sequence, [-1], "last"))
    model.run((sequence, ids(30), "last"))
    assert model.length(sequence) == 40
    model.free(sequence)
    model.run((other, ids(40), "none"))
    model.free(other)
    model.close()


def test_logits_of_chunks_do_not_depend_on_threads(folder: Path) -> None:
    rows = []
    for threads in (1, 2, 3):
        model = Model(folder, threads=threads)
        rows.append(model.logits(ids(200)))
        model.close()
    assert np.array_equal(rows[0], rows[1])
    assert np.array_equal(rows[0], rows[2])
