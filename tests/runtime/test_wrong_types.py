"""Values of a wrong type are faults of the request, for every public function of the runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.errors import RequestFault, RuntimeFault
from dsv3c.runtime.model import Model
from dsv3c.runtime.text.tokenizer import Tokenizer
from tests.runtime import toy

VALUES: tuple[Any, ...] = (
    *("x", b"x", None, 1.5, -1, True, 2**70, float("nan"), object(), print, range(3)),
    *([], {}, set(), [None], ["a"], [1.5], [[1]], [{}], [{"role": 1}], {"a": 1}),
    *(np.zeros((2, 2)), np.zeros(3, complex), np.array("x"), np.array(1)),
)
STEP: dict[str, Any] = {"tokens": [1], "positions": [0], "sequence": [0], "pages": [[0]], "rows": [0]}


@pytest.fixture
def model(tmp_path: Path) -> Model:
    artifact = toy.toy_artifact(tmp_path)
    return Model(artifact, toy.ToyDevice(artifact.plan, 64), context=64)


def refused(call: Callable[[Any], object], fault: type[RuntimeFault] = RequestFault) -> int:
    """How many of VALUES are refused, by that fault and no other error."""
    count = 0
    for value in VALUES:
        try:
            call(value)
        except fault:
            count += 1
    return count


def test_models(model: Model) -> None:
    states = np.zeros((1, toy.HIDDEN), np.float32)
    assert refused(model.logits) > 15
    assert refused(model.hidden) > 15
    assert refused(lambda value: model.mtp_logits(value, [1])) > 15
    assert refused(lambda value: model.mtp_logits(states, value)) > 15
    assert refused(lambda value: model.generate(value, max_new_tokens=1)) > 15
    assert refused(lambda value: model.perplexity(value)) > 15
    assert refused(lambda value: model.perplexity([1, 2], value)) == len(VALUES)
    for name in ("max_new_tokens", "temperature", "top_p", "seed", "stop", "ignore_eos"):
        assert refused(lambda value, name=name: model.generate([1], **{name: value})) > 10


def test_steps(model: Model) -> None:
    session = model.session
    for name in STEP:
        assert refused(lambda value, name=name: session.step(**{**STEP, name: value})) > 15
    assert refused(lambda value: session.step(**STEP, entry=value)) > 15
    assert refused(lambda value: session.step(**STEP, entry="mtp", hidden=value)) == len(VALUES)
    assert refused(session.tokens) > 15


def test_requests(model: Model) -> None:
    session, tokens = model.session, np.array([1], np.int32)

    def request(**fields: Any) -> None:
        sequence = model.new_sequence()
        try:
            session.run([Request(**{"sequence": sequence, "tokens": tokens, "want": "last", **fields})])
        finally:
            sequence.close()

    request()
    for name in ("sequence", "tokens", "want"):
        assert refused(lambda value, name=name: request(**{name: value})) == len(VALUES)
    assert refused(lambda value: request(draws=value)) == len(VALUES)
    assert refused(lambda value: request(tokens=np.array([toy.VOCAB], np.int32))) == len(VALUES)
    for run in (session.run, session.draw, lambda value: list(session.chunks(value))):
        assert refused(run) > 15
    assert refused(session.new_sequence) == len(VALUES) - 2  # None, and an integer that is large
    assert session.pool.free_pages == session.pool.pages


def test_sequences_and_pages(model: Model) -> None:
    sequence = model.new_sequence()
    for call in (sequence.truncate, sequence.reserve, sequence.pages_needed):
        assert refused(call) > 15
    assert refused(sequence.fork) > 15
    pool = model.session.pool
    for call in (pool.share, pool.release, pool.writable, pool.references, pool.require):
        assert refused(call) > 15


def test_tokenizers(bundled_model: Path) -> None:
    tokenizer = Tokenizer(bundled_model / "tokenizer.json", {"chat_template": "{{ messages[0].content }}"})
    strings = sum(isinstance(value, str) for value in VALUES)
    for call in (tokenizer.encode, tokenizer.encode_plain, tokenizer.token_id, tokenizer.special_token):
        assert refused(call) == len(VALUES) - strings
    assert refused(tokenizer.decode) > 10
    assert refused(lambda value: tokenizer.encode("a", value)) > 10
    assert refused(tokenizer.encode_chat) > 15


def test_loading(tmp_path: Path) -> None:
    folder = toy.write_artifact(tmp_path / "toy")
    assert refused(runtime.load, RuntimeFault) == len(VALUES)
    for name in ("threads", "context", "max_batch", "device", "gpu_layers", "cpu_artifact", "numa"):
        assert refused(lambda value, name=name: runtime.load(folder, **{name: value}), RuntimeFault) > 15
