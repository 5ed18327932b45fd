"""Counts of experts: they are those that the model's definition chooses, of every token that is computed, once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.runtime.engine.expert_stats import ExpertStats, ExpertsUnknown, Load, NoExperts
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.errors import ModelClosed, ParameterInvalid
from dsv3c.runtime.model import Model
from tests.conftest import BUNDLED_MODEL, TESTS
from tests.runtime.engine_checks import draft_always
from tests.runtime.experts import Ids, counted, visited

LAYERS = [1, 2, 3]  # of the bundled model's four, the first is dense
EXPERTS, TOP_K = 16, 4


@pytest.fixture(scope="module")
def model(bundled_artifact: Callable[..., Path]) -> Iterator[Model]:
    with runtime.load(bundled_artifact("float32"), context=512, max_batch=3, prefix_cache=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def texts() -> list[Ids]:
    generator = np.random.default_rng(11)
    return [generator.integers(0, 2048, size).astype(np.int32) for size in (40, 23)]


@pytest.fixture(scope="module")
def truth(checkpoint: Checkpoint, texts: list[Ids]) -> list[dict[int, Ids]]:
    return [visited(checkpoint, text) for text in texts]


def counts_of(stats: ExpertStats) -> dict[int, list[int]]:
    return {layer: found.counts.tolist() for layer, found in stats.layers.items()}


def test_experts_of_a_prompt_are_those_of_the_definition(
    model: Model, texts: list[Ids], truth: list[dict[int, Ids]]
) -> None:
    with model.count_experts() as stats:
        model.logits(texts[0])
    assert counts_of(stats) == counted(truth[0], EXPERTS)
    assert list(stats.layers) == LAYERS


def test_prefill_chunks_and_single_tokens_of_a_batch_count_the_same(
    model: Model, texts: list[Ids], truth: list[dict[int, Ids]]
) -> None:
    sequences = [model.new_sequence() for _ in texts]
    with model.count_experts(window=5) as stats:
        for start, stop in ((0, 17), (17, 21), (21, 22), (22, 23)):
            model.session.run([Request(s, t[start:stop], "last") for s, t in zip(sequences, texts, strict=True)])
        model.session.run([Request(sequences[0], texts[0][23:], "none")])
    both = {layer: np.concatenate([truth[0][layer], truth[1][layer]]) for layer in LAYERS}
    assert counts_of(stats) == counted(both, EXPERTS)
    last = {layer: truth[0][layer][-5:] for layer in LAYERS}
    assert {layer: stats.layers[layer].window_counts.tolist() for layer in LAYERS} == counted(last, EXPERTS)
    for sequence in sequences:
        sequence.close()


def test_the_long_form_of_attention_counts_too(model: Model, checkpoint: Checkpoint) -> None:
    entry = model.session.plan.entries["prefill"]
    tokens = np.random.default_rng(2).integers(0, 2048, entry.min_tokens + 3).astype(np.int32)
    with model.count_experts() as stats:
        model.logits(tokens)
    assert counts_of(stats) == counted(visited(checkpoint, tokens), EXPERTS)


def test_every_token_that_is_computed_counts_once_in_every_layer(model: Model) -> None:
    prompts = [[5, 6, 7], [8, 9], [3]]
    with model.count_experts() as stats:
        answers = model.generate_batch(prompts, max_new_tokens=9, ignore_eos=True)
    # The last token of an answer is not fed.
    assert stats.tokens == sum(map(len, prompts)) + sum(len(answer.token_ids) - 1 for answer in answers)
    assert {int(found.counts.sum()) for found in stats.layers.values()} == {stats.tokens * TOP_K}


def test_drafts_count_as_they_are_computed_and_the_layer_that_drafts_does_not(
    bundled_artifact: Callable[..., Path],
) -> None:
    with runtime.load(bundled_artifact("float32"), context=256, speculate="mtp", prefix_cache=False) as model:
        draft_always(model)
        with model.count_experts() as stats:
            answer = model.generate([5, 6, 7], max_new_tokens=24, ignore_eos=True)
        drafted = answer.drafted
    assert list(stats.layers) == LAYERS
    refused = drafted.proposed - drafted.accepted
    fed = 3 + len(answer.token_ids) - 1
    assert drafted.proposed and fed <= stats.tokens <= fed + refused + drafted.steps
    assert stats.tokens > fed or not refused


def test_what_the_prefix_cache_spares_is_not_computed_and_does_not_count(bundled_artifact: Callable[..., Path]) -> None:
    prompt = list(range(5, 45))
    with runtime.load(bundled_artifact("float32"), context=256) as model, model.count_experts() as stats:
        model.generate(prompt, max_new_tokens=1)
        first = stats.tokens
        spared = model.generate(prompt, max_new_tokens=1).cached_tokens
    assert first == 40 and spared > 0
    assert stats.tokens == 80 - spared


def test_two_who_count_at_once_each_have_their_own(model: Model, texts: list[Ids]) -> None:
    with model.count_experts() as outer:
        with model.count_experts() as inner:
            model.logits(texts[1])
        model.logits(texts[1])
    model.logits(texts[1])
    assert (inner.tokens, outer.tokens) == (23, 46)


def test_the_device_is_not_asked_where_nobody_counts(
    model: Model, texts: list[Ids], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(model.session.device), "experts", lambda *_: pytest.fail("asked"))
    model.logits(texts[1])


def test_an_answer_is_the_same_while_experts_are_counted(model: Model) -> None:
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 4}
    alone = model.generate([5, 6, 7], **how).token_ids
    with model.count_experts():
        assert model.generate([5, 6, 7], **how).token_ids == alone


def test_a_request_that_asks_gets_the_experts_of_its_own_tokens(
    model: Model, texts: list[Ids], truth: list[dict[int, Ids]], checkpoint: Checkpoint
) -> None:
    how: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}
    asking = [model.submit(texts[0], experts=True, **how), model.submit(texts[1], experts=True, **how)]
    beside = model.submit([7, 8, 9], **how)
    (first,), (second,), (other,) = (ticket.results() for ticket in (*asking, beside))
    assert other.experts is None
    for visits, found in zip(truth, (first, second), strict=True):
        assert found.experts is not None
        assert counts_of(found.experts.prompt) == counted(visits, EXPERTS)
        assert {sum(counts) for counts in counts_of(found.experts.answer).values()} == {5 * TOP_K}
    assert second.experts is not None
    fed = np.concatenate([texts[1], np.array(second.token_ids[:-1], np.int32)])  # the last token is not fed
    answer = {layer: ids[texts[1].size :] for layer, ids in visited(checkpoint, fed).items()}
    assert counts_of(second.experts.answer) == counted(answer, EXPERTS)


def test_counts_of_a_request_are_told_by_layer(model: Model) -> None:
    found = model.generate([5, 6, 7], experts=True, max_new_tokens=1).experts
    assert found is not None
    told = found.to_json()
    assert (told["experts"], told["top_k"], told["prompt_tokens"], told["answer_tokens"]) == (EXPERTS, TOP_K, 3, 0)
    assert [layer["layer"] for layer in told["layers"]] == LAYERS
    assert {sum(layer["prompt"]) for layer in told["layers"]} == {3 * TOP_K}
    assert {sum(layer["answer"]) for layer in told["layers"]} == {0}


def test_experts_of_all_beams_count_together(model: Model) -> None:
    found = model.generate([5, 6, 7], experts=True, num_beams=3, max_new_tokens=4, ignore_eos=True).experts
    assert found is not None
    assert (found.prompt.tokens, found.answer.tokens) == (3, 9)


def test_a_request_for_experts_is_refused_where_there_are_none(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterInvalid, match="experts"):
        model.submit([5], experts=1)
    monkeypatch.setattr(model, "config", {**model.config, "n_routed_experts": 0})
    with pytest.raises(NoExperts):
        model.submit([5], experts=True)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_artifact_that_does_not_say_is_to_be_compiled_again(version: str) -> None:
    with runtime.load(TESTS / "goldens" / "artifacts" / version / "model") as model:
        with pytest.raises(ExpertsUnknown, match="compile the checkpoint again"), model.count_experts():
            pass
        assert model.session.expert_stats == []


def test_experts_that_compute_nothing_are_counted_behind_the_others(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "config", {**model.config, "zero_expert_num": 4})
    with model.count_experts() as stats:
        model.generate([5, 6, 7], max_new_tokens=2, ignore_eos=True)
    assert {len(layer.counts) for layer in stats.layers.values()} == {EXPERTS + 4}


def test_a_model_without_experts_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "config", {**model.config, "n_routed_experts": 0})
    with pytest.raises(NoExperts), model.count_experts():
        pass


@pytest.mark.parametrize("window", [0, -1, 1.5, True, 1 << 21])
def test_the_window_is_a_number_of_tokens(model: Model, window: Any) -> None:
    with pytest.raises(ParameterInvalid, match="window"), model.count_experts(window):
        pass


def test_a_closed_model_counts_nothing(bundled_artifact: Callable[..., Path]) -> None:
    model = runtime.load(bundled_artifact("float32"), context=64)
    model.close()
    with pytest.raises(ModelClosed), model.count_experts():
        pass


@pytest.mark.parametrize("sizes", [[1] * 11, [3, 1, 4, 1, 5], [25], [2, 9, 1]])
def test_the_window_has_the_last_tokens_however_they_come(sizes: list[int]) -> None:
    ids = np.random.default_rng(sum(sizes)).integers(0, 6, (sum(sizes), 2)).astype(np.int32)
    stats, start = ExpertStats(experts=6, top_k=2, window=7), 0
    for size in sizes:
        stats.add(4, ids[start : start + size])
        start += size
    found = stats.layers[4]
    assert found.counts.tolist() == np.bincount(ids.reshape(-1), minlength=6).tolist()
    assert found.window_counts.tolist() == np.bincount(ids[-7:].reshape(-1), minlength=6).tolist()
    assert stats.window_tokens == min(7, sum(sizes))


def test_even_use_is_as_many_effective_experts_and_one_expert_is_one() -> None:
    assert Load.of(np.full(8, 5)) == Load(0, 1 / 8, 3.0, 8.0)
    assert Load.of(np.array([0, 7, 0])) == Load(1, 1.0, 0.0, 1.0)
    half = Load.of(np.array([2, 1, 1]))
    assert half is not None and half.entropy == 1.5
    assert Load.of(np.zeros(4, np.int64)) is None


def test_ids_that_are_no_experts_count_nowhere() -> None:
    stats = ExpertStats(experts=3, top_k=2, window=4)
    stats.add(0, np.array([[0, 7], [-5, 2]], np.int32))
    assert stats.layers[0].counts.tolist() == [1, 0, 1]


def test_the_json_has_each_layer_with_its_counts() -> None:
    stats = ExpertStats(experts=3, top_k=1, window=2)
    for layer in (2, 1):
        stats.add_step({layer: np.array([0, 1, 1], np.int32)})
    found = stats.to_json()
    assert {name: found[name] for name in ("tokens", "window", "window_tokens", "experts", "top_k")} == {
        "tokens": 3, "window": 2, "window_tokens": 2, "experts": 3, "top_k": 1,
    }  # fmt: skip
    assert [layer["layer"] for layer in found["layers"]] == [1, 2]
    assert found["layers"][0] == {
        "layer": 1,
        "counts": [1, 2, 0],
        "busiest": 1,
        "busiest_share": 0.666667,
        "entropy_bits": 0.9183,
        "effective_experts": 1.89,
        "window_counts": [0, 2, 0],
        "window_busiest": 1,
        "window_busiest_share": 1.0,
        "window_entropy_bits": 0.0,
        "window_effective_experts": 1.0,
    }
