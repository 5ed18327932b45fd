"""The model as users see it: logits, generation, streams, perplexity and every bad request."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors, load
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices import device
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.toy import expected_logits

PROMPT = [3, 4, 5, 6, 7, 8, 9]


@pytest.fixture(autouse=True)
def toy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dsv3c.runtime.model.place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots))
    )


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with load(toy.write_artifact(tmp_path / "toy")) as model:
        yield model


@pytest.fixture
def talking(tmp_path: Path) -> Iterator[Model]:
    """A toy with a tokenizer of its 50 ids: <b> and <e>, then characters."""
    with load(toy.write_artifact(tmp_path / "talking", **tokenizer_files())) as model:
        yield model


def tokenizer_files(template: str | None = "{{ bos_token }}{{ messages[0].content }}") -> dict[str, bytes]:
    vocab = {"<b>": 0, "<e>": 1, **{char: i + 2 for i, char in enumerate(map(chr, range(48, 48 + toy.VOCAB - 2)))}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(("<b>", "<e>"))],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "decoder": {"type": "Fuse"},
    }
    config = {"bos_token": "<b>", "eos_token": {"content": "<e>"}, "chat_template": template}
    return {"tokenizer__json": json.dumps(content).encode(), "tokenizer_config__json": json.dumps(config).encode()}


def greedy(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(expected_logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def free_pages(model: Model) -> int:
    return model.session.pool.free_pages


def test_config_is_read_only(model: Model) -> None:
    assert model.config.hidden_size == model.config["hidden_size"] == toy.HIDDEN
    assert "vocab_size" in model.config and model.config.get("nothing") is None
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.config.nothing
    with pytest.raises(TypeError):
        model.config["vocab_size"] = 1  # type: ignore[index]


def test_logits(model: Model) -> None:
    for tokens in ([5], PROMPT, list(range(49)), np.arange(20, dtype=np.int64)):
        found = model.logits(tokens)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected_logits(tokens))
    assert free_pages(model) == 16


def test_hidden_and_mtp(model: Model) -> None:
    hidden = model.hidden(PROMPT)
    np.testing.assert_array_equal(hidden, [[token, i] for i, token in enumerate(PROMPT)])
    expected = [toy.row_logits(a * 100 + b) for a, b in itertools.pairwise(PROMPT)]
    np.testing.assert_array_equal(model.mtp_logits(hidden[:-1], PROMPT[1:]), expected)
    with pytest.raises(errors.StepInvalid, match="hidden"):
        model.mtp_logits(hidden, PROMPT[1:])
    assert free_pages(model) == 16


def test_no_mtp_entry(tmp_path: Path) -> None:
    content = toy.plan_content()
    del content["entries"]["mtp"]
    del content["entries"]["decode"]["outputs"]["hidden"]
    with load(toy.write_artifact(tmp_path / "toy", content)) as model:
        with pytest.raises(errors.UnknownEntry):
            model.mtp_logits(np.zeros((1, 2), np.float32), [1])
        with pytest.raises(errors.UnknownEntry):
            model.hidden([1])


def test_generate_greedily(model: Model) -> None:
    found = model.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    assert list(found.token_ids) == greedy(PROMPT, 12)
    assert (found.finish_reason, found.prompt_tokens, found.text) == ("length", 7, "")
    assert found.first_token_seconds > 0
    assert found.prompt_tokens_per_second > 0 and found.decode_tokens_per_second > 0
    assert free_pages(model) == 16


def test_end_token_stops(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = greedy(PROMPT, 6)
    end = answer[4]
    monkeypatch.setattr(Model, "end_tokens", frozenset({end}))
    found = model.generate(PROMPT)
    assert (list(found.token_ids), found.finish_reason) == (answer[: answer.index(end)], "stop")
    assert len(model.generate(PROMPT, max_new_tokens=6, ignore_eos=True).token_ids) == 6


def test_end_tokens_of_both_files(tmp_path: Path) -> None:
    files = {"generation_config__json": b'{"eos_token_id": [7, 8, "x", true], "do_sample": true, "top_p": 0.5}'}
    with load(toy.write_artifact(tmp_path / "toy", **files)) as model:
        assert model.end_tokens == {1, 7, 8}
        assert (model.defaults.temperature, model.defaults.top_p) == (1.0, 0.5)
        assert model.generate(PROMPT, seed=3).token_ids == model.generate(PROMPT, seed=3).token_ids


@pytest.mark.parametrize(
    "content",
    [
        b'{"top_k": -1}',
        b'{"top_p": 0, "top_k": "x"}',
        b"[]",
        b"{",
        b'\xef\xbb\xbf{"top_k": 20.0}',
        b'{"max_length": 2, "stop_strings": ["no tokenizer"], "suppress_tokens": [-1, 10000], "num_beams": 4}',
    ],
)
def test_defaults_of_an_artifact_never_keep_it_from_loading(tmp_path: Path, content: bytes) -> None:
    with load(toy.write_artifact(tmp_path / "toy", generation_config__json=content)) as model:
        assert model.defaults.top_k == (20 if b"20.0" in content else 0)
        assert list(model.generate(PROMPT, top_k=1, temperature=1, max_new_tokens=3).token_ids) == greedy(PROMPT, 3)


def test_an_end_token_of_the_request_stops_instead_of_the_models(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = greedy(PROMPT, 6)
    monkeypatch.setattr(Model, "end_tokens", frozenset({answer[2]}))
    found = model.generate(PROMPT, eos_token_id=answer[4])
    assert (list(found.token_ids), found.finish_reason) == (answer[: answer.index(answer[4])], "stop")


def test_lengths_of_an_answer(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "end_tokens", frozenset(range(model.session.vocab_size - 1)))
    assert len(model.generate(PROMPT, max_length=len(PROMPT) + 3, ignore_eos=True).token_ids) == 3
    assert len(model.generate(PROMPT, min_new_tokens=3, max_new_tokens=3).token_ids) == 3
    assert len(model.generate(PROMPT, min_length=len(PROMPT) + 2, max_new_tokens=2).token_ids) == 2


def test_a_text_begins_with_the_bos_unless_it_is_left_out(tmp_path: Path) -> None:
    files = tokenizer_files()
    config = json.loads(files["tokenizer_config__json"]) | {"add_bos_token": True}
    files["tokenizer_config__json"] = json.dumps(config).encode()
    with load(toy.write_artifact(tmp_path / "toy", **files)) as model:
        plain = model.tokenizer.encode_plain("AB")
        for chosen, prompt in ((None, [0, *plain]), (True, [0, *plain]), (False, plain)):
            assert list(model.generate("AB", chosen, max_new_tokens=3).token_ids) == greedy(prompt, 3)


def test_full_context_ends_with_length(model: Model) -> None:
    found = model.generate([2] * 60, max_new_tokens=10**20, ignore_eos=True)
    assert (len(found.token_ids), found.finish_reason) == (4, "length")
    assert list(found.token_ids) == greedy([2] * 60, 4)
    assert model.generate([2] * 64).token_ids == ()


def test_text_in_text_out(talking: Model) -> None:
    found = talking.generate("AB", max_new_tokens=9, ignore_eos=True)
    prompt = talking.tokenizer.encode("AB")
    assert list(found.token_ids) == greedy(prompt, 9)
    assert found.text == talking.tokenizer.decode(found.token_ids)
    events = list(talking.stream("AB", max_new_tokens=9, ignore_eos=True))
    assert "".join(event.text for event in events) == found.text
    assert [event.token_id for event in events] == [*found.token_ids, None]
    assert [event.finish_reason for event in events] == [None] * 9 + ["length"]


def test_stop_string_across_tokens(talking: Model) -> None:
    text = talking.generate("AB", max_new_tokens=9, ignore_eos=True).text
    found = talking.generate("AB", max_new_tokens=9, ignore_eos=True, stop=[text[4:6], "never there"])
    assert found.finish_reason == "stop"
    assert found.text == text[: text.index(text[4:6])]


def test_chat_messages(talking: Model) -> None:
    answer = talking.generate([{"role": "user", "content": "AB"}], max_new_tokens=3, ignore_eos=True)
    assert list(answer.token_ids) == greedy([0, *talking.tokenizer.encode("AB")], 3)


def test_chat_without_a_template(tmp_path: Path) -> None:
    folder = toy.write_artifact(tmp_path / "toy", **tokenizer_files(None))
    with load(folder) as model, pytest.raises(errors.TemplateMissing):
        model.generate([{"role": "user", "content": "AB"}])


def test_cancelled_stream_gives_its_pages_back(model: Model) -> None:
    stream = model.stream(PROMPT, ignore_eos=True)
    for _ in range(3):
        next(stream)
    assert free_pages(model) < 16
    stream.close()  # type: ignore[attr-defined]
    assert free_pages(model) == 16
    model.stream(PROMPT)  # never started
    assert free_pages(model) == 16


def test_device_fails_in_mid_stream(model: Model) -> None:
    toy_device = model.session.device
    assert isinstance(toy_device, toy.ToyDevice)
    toy_device.fail_at = 4
    with pytest.raises(errors.Unforeseen, match="a step failed: RuntimeError at run:"):
        model.generate(PROMPT, ignore_eos=True)
    toy_device.fail_at = None
    assert free_pages(model) == 16
    assert list(model.generate(PROMPT, max_new_tokens=3, ignore_eos=True).token_ids) == greedy(PROMPT, 3)


def test_two_streams_share_the_pool(tmp_path: Path) -> None:
    with load(toy.write_artifact(tmp_path / "toy"), context=16, max_batch=2) as model:
        first = model.stream([1, 2, 3], max_new_tokens=6, ignore_eos=True)
        second = model.stream([4, 5], max_new_tokens=6, ignore_eos=True)
        both = [(a.token_id, b.token_id) for a, b in zip(first, second, strict=True)]
        assert [a for a, _ in both[:-1]] == greedy([1, 2, 3], 6)
        assert [b for _, b in both[:-1]] == greedy([4, 5], 6)


def test_out_of_pages_in_mid_stream(tmp_path: Path) -> None:
    with load(toy.write_artifact(tmp_path / "toy"), context=8) as model:
        stream = model.stream([1, 2, 3, 4], ignore_eos=True)
        next(stream)
        with pytest.raises(errors.OutOfPages):
            model.logits([1] * 8)
        assert next(stream).token_id is not None
        del stream


def test_threads_take_turns(tmp_path: Path) -> None:
    results: dict[int, list[int]] = {}
    with load(toy.write_artifact(tmp_path / "toy"), max_batch=3) as model:

        def work(first: int) -> None:
            answer = model.generate([first, 2, 3], max_new_tokens=20, ignore_eos=True)
            results[first] = list(answer.token_ids)

        threads = [threading.Thread(target=work, args=(first,)) for first in (5, 6, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {first: greedy([first, 2, 3], 20) for first in (5, 6, 7)}


def test_perplexity_of_cold_windows(model: Model) -> None:
    tokens = [(11 * i) % toy.VOCAB for i in range(44)]
    total = 0.0
    for start in range(0, len(tokens) - 1, 10):
        part = tokens[start : start + 11]
        logits = expected_logits(part[:-1]).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        total -= logs[np.arange(len(part) - 1), part[1:]].sum()
    found = model.perplexity(tokens, window=10)
    assert found.tokens == 43
    assert found.nll == pytest.approx(total / 43, rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(total / 43), rel=1e-5)


@pytest.mark.parametrize("window", [0, -1, 65, 1.5, True])
def test_perplexity_window_invalid(model: Model, window: Any) -> None:
    with pytest.raises(errors.ParameterInvalid):
        model.perplexity(PROMPT, window=window)


def test_perplexity_of_too_few_tokens(model: Model) -> None:
    with pytest.raises(errors.EmptyPrompt):
        model.perplexity([1])


@pytest.mark.parametrize("prompt", [[], (), np.zeros(0, np.int32)])
def test_prompt_empty(model: Model, prompt: Any) -> None:
    for use in (model.generate, model.logits):
        with pytest.raises(errors.EmptyPrompt):
            use(prompt)


def test_prompt_longer_than_the_context(tmp_path: Path) -> None:
    with load(toy.write_artifact(tmp_path / "toy"), context=10) as model:
        assert model.context == 10
        for use in (model.generate, model.logits):
            with pytest.raises(errors.ContextOverflow, match="11 tokens, the context holds 10"):
                use([1] * 11)


@pytest.mark.parametrize("token", [-1, toy.VOCAB, 2**31, 2**64])
def test_ids_out_of_range(model: Model, token: int) -> None:
    for use in (model.generate, model.logits, model.stream):
        with pytest.raises(errors.TokenOutOfRange):
            use([1, token])


@pytest.mark.parametrize("prompt", [3, [1.5], [[1, 2]], ["a"], None, [{"role": "user"}, 3]], ids=str)
def test_prompt_of_another_kind(model: Model, prompt: Any) -> None:
    with pytest.raises(errors.RuntimeFault):
        model.generate(prompt)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("max_new_tokens", -5), ("temperature", float("nan")), ("temperature", -1), ("top_p", 0),
     ("top_p", 2), ("stop", [""]), ("max_length", 3), ("suppress_tokens", [10**6])],
)  # fmt: skip
def test_parameters_are_checked_before_the_first_event(model: Model, name: str, value: Any) -> None:
    with pytest.raises(errors.ParameterInvalid, match=name):
        model.stream(PROMPT, **{name: value})


def test_text_without_a_tokenizer(model: Model) -> None:
    assert not model.has_tokenizer
    with pytest.raises(errors.TokenizerMissing):
        model.generate("text")
    with pytest.raises(errors.TokenizerMissing, match="stop string"):
        model.generate(PROMPT, stop=["x"])


def test_tokenizer_malformed(tmp_path: Path) -> None:
    with load(toy.write_artifact(tmp_path / "toy", tokenizer__json=b"{}")) as model:
        np.testing.assert_array_equal(model.logits([1]), expected_logits([1]))
        with pytest.raises(errors.TokenizerMalformed):
            model.generate("text")


@pytest.mark.parametrize(
    "arguments", [{"context": 0}, {"context": 65}, {"context": 1.5}, {"max_batch": 0}, {"max_batch": 4}]
)
def test_load_arguments_invalid(tmp_path: Path, arguments: Any) -> None:
    with pytest.raises(errors.ContextInvalid, match=r"ends at the length the model was trained for.*--max-sequences"):
        load(toy.write_artifact(tmp_path / "toy"), **arguments)


def test_context_and_batch_size_the_cache(tmp_path: Path) -> None:
    with load(toy.write_artifact(tmp_path / "toy"), context=10, max_batch=3) as model:
        assert model.session.device.slots == 36
        assert model.report()["cache_pages"] == 9


def test_closed_model(model: Model) -> None:
    stream = model.stream(PROMPT, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(errors.ModelClosed):
        next(stream)
    for use in (model.generate, model.logits):
        with pytest.raises(errors.ModelClosed):
            use(PROMPT)
    with pytest.raises(errors.ModelClosed):
        model.report()
    session = model.session
    request = Request(session.new_sequence(), session.tokens([1, 2]), "last")
    with pytest.raises(errors.ModelClosed):
        session.run([request])
    with pytest.raises(errors.ModelClosed):
        session.step([1], [0], [0], [[0]], [0])


def test_open_device_is_by_target_family(tmp_path: Path) -> None:
    artifact = Artifact.open(toy.write_artifact(tmp_path / "toy"))
    with pytest.raises(errors.RuntimeFault):  # the toy's library is no library
        device.open_device(artifact, 64, 1)
