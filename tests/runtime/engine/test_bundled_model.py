"""The engine on the bundled model in float32: what transformers generates, and the same text however it is made."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv3c import runtime
from dsv3c.runtime.model import Model
from tests.conftest import GOLDENS
from tests.runtime.engine_checks import draft_always

DECODING = json.loads((GOLDENS / "engine" / "decoding.json").read_text(encoding="utf-8"))
FEW = {"greedy": 50, "greedy to a full stop": 50, "4 beams": 16, "3 results": 16}  # prompts; of other ways


@pytest.fixture(scope="module")
def artifact(bundled_artifact: Callable[..., Path]) -> Path:
    return bundled_artifact("float32")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with runtime.load(artifact, context=512, max_batch=8) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def texts(bundled_model: Path) -> list[str]:
    """Beginnings of stories, of different lengths."""
    whole = (bundled_model / "eval.txt").read_text(encoding="utf-8")
    paragraphs = [line for line in whole.splitlines() if len(line) > 200]
    return [line[: 20 + 23 * number] for number, line in enumerate(paragraphs[:8])]


@pytest.mark.parametrize(
    "way", [way if way in FEW else pytest.param(way, marks=pytest.mark.thorough) for way in DECODING["ways"]]
)
def test_texts_are_those_of_transformers(model: Model, way: str) -> None:
    params, results = (DECODING["ways"][way][name] for name in ("params", "results"))
    ends = params.get("eos_token_id", [1])
    count = min(FEW.get(way, 50), len(results))
    tickets = [
        model.submit(prompt, temperature=0, max_new_tokens=DECODING["new_tokens"], **params)
        for prompt in DECODING["prompts"][:count]
    ]
    for ticket, expected in zip(tickets, results, strict=False):
        found = ticket.results()
        assert [list(each.token_ids) for each in found] == [
            [token for token in text["tokens"] if token not in ends] for text in expected
        ]
        if expected[0]["score"] is not None:
            assert [each.score for each in found] == pytest.approx([text["score"] for text in expected], abs=1e-4)


@pytest.mark.parametrize("how", [{"temperature": 0}, {"temperature": 0.8, "top_p": 0.95, "seed": 5}], ids=str)
def test_a_batch_of_ragged_prompts_is_answered_as_each_alone(model: Model, texts: list[str], how: Any) -> None:
    alone = [model.generate(text, max_new_tokens=24, **how).token_ids for text in texts]
    assert [each.token_ids for each in model.generate_batch(texts, max_new_tokens=24, **how)] == alone


@pytest.mark.parametrize("drafter", ["mtp", "ngram", "itself"])
def test_speculation_changes_no_text(model: Model, artifact: Path, texts: list[str], drafter: str) -> None:
    draft = artifact if drafter == "itself" else drafter
    prompts = [*texts[:3], texts[3] + texts[3]]
    hows: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "seed": 3},
        {"repetition_penalty": 1.2, "seed": 4},
    ]
    with runtime.load(artifact, context=512, max_batch=8, speculate=draft) as drafted:
        speculator = drafted.engine.scheduler.speculator
        assert speculator is not None
        draft_always(drafted)
        for how in hows:
            found = drafted.generate_batch(prompts, max_new_tokens=20, **how)
            for text, each in zip(prompts, found, strict=True):
                plain = model.generate(text, max_new_tokens=20, **how)
                assert each.token_ids == plain.token_ids
        assert speculator.fault is None
        assert speculator.drafted.accepted > 0
        if drafter == "itself":
            greedy = drafted.generate(texts[0], max_new_tokens=20, temperature=0)
            assert greedy.drafted.acceptance == 1
        assert drafted.session.pool.free_pages == drafted.session.pool.pages


@pytest.mark.parametrize("drafter", ["mtp", "itself"])
def test_a_drafter_that_is_not_asked_reads_and_keeps_nothing(artifact: Path, texts: list[str], drafter: str) -> None:
    with runtime.load(artifact, context=512, speculate=artifact if drafter == "itself" else drafter) as drafted:
        speculator = drafted.engine.scheduler.speculator
        assert speculator is not None
        speculator.lengths.resting = 2**20
        for _ in drafted.stream(texts[7], max_new_tokens=20, ignore_eos=True):
            inner = speculator.drafter
            kept = inner._states if drafter == "mtp" else inner._texts  # type: ignore[attr-defined]
            assert kept == {}


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.thorough)])
def test_a_load_of_random_requests_on_half_of_the_cache_is_answered_as_alone(
    artifact: Path, model: Model, texts: list[str], count: int
) -> None:
    rng = random.Random(count)
    tokens = [model.tokenizer.encode(text) for text in texts]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9},
        {"temperature": 1, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 0.7, "min_p": 0.1, "presence_penalty": 0.5},
        {"temperature": 0, "num_beams": 3, "no_repeat_ngram_size": 3},
    ]
    requests = []
    for number in range(count):
        text = rng.choice(tokens)
        prompt = text[: rng.randrange(1, len(text))]
        how = rng.choice(kinds) | {"seed": number, "max_new_tokens": rng.randrange(1, 20)}
        requests.append((prompt, how, rng.randrange(3), rng.random() < 0.1))
    with runtime.load(artifact, context=128, max_batch=3) as small:  # of eight sequences of a step
        tickets = []
        for prompt, how, priority, _ in requests:
            tickets.append(small.submit(prompt, priority=priority, **how))
            if rng.random() < 0.3:
                small.engine.scheduler.step()
        for ticket, (_, _, _, cancelled) in zip(tickets, requests, strict=True):
            if cancelled:
                ticket.cancel()
        found = [ticket.results()[0] for ticket in tickets]
        assert small.session.pool.free_pages == small.session.pool.pages
    different = []
    for each, (prompt, how, _, _) in zip(found, requests, strict=True):
        whole = model.generate(prompt, **how).token_ids
        if each.finish_reason != "cancelled" and each.token_ids != whole:
            different.append((prompt, how))
    assert not different


def test_requests_without_drafts_leave_no_page_with_the_drafter(artifact: Path, bundled_model: Path) -> None:
    whole = (bundled_model / "eval.txt").read_text(encoding="utf-8")
    with runtime.load(artifact, context=1024, speculate="mtp", prefix_cache=False) as drafted:
        prompt = drafted.tokenizer.encode(whole[:4000])[:600]  # in two steps
        for how in ({"num_beams": 2, "temperature": 0}, {"speculate": False}, {"temperature": 0}):
            drafted.generate(prompt, max_new_tokens=3, **how)
            assert drafted.session.pool.free_pages == drafted.session.pool.pages
        drafter = drafted.engine.scheduler.speculator.drafter  # type: ignore[union-attr]
        assert drafter._states == {}  # type: ignore[attr-defined]


def test_a_second_question_about_the_same_text_starts_at_once(model: Model, bundled_model: Path) -> None:
    whole = (bundled_model / "eval.txt").read_text(encoding="utf-8")
    prompt = model.tokenizer.encode(whole[:4000])[:450]
    first = model.generate(prompt, max_new_tokens=4, temperature=0)
    again = model.generate(prompt, max_new_tokens=4, temperature=0)
    assert again.token_ids == first.token_ids
    assert again.cached_tokens == 448


def test_a_second_start_does_not_read_a_long_conversation_again(
    artifact: Path, bundled_model: Path, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    with runtime.load(artifact, context=2048) as first:
        talk = first.encode((bundled_model / "eval.txt").read_text(encoding="utf-8")[:16000])[:2000]
        talk += first.generate(talk, **how).token_ids
        assert first.save_prefixes(tmp_path / "pages") == 2000
        expected = first.generate([*talk, 7], **how)
    with runtime.load(artifact, context=2048) as second:
        assert second.restore_prefixes(tmp_path / "pages") == 2000
        answer = second.generate([*talk, 7], **how)
    assert (answer.token_ids, answer.cached_tokens) == (expected.token_ids, 2000)
