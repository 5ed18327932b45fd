"""What is compared with what; never how long it takes. The model is the toy, which can be foreseen by nobody."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import load
from dsv3c.runtime.engine.generation import Drafted
from dsv3c.runtime.errors import BenchTooLong, TextTooShort, TokenizerMissing
from dsv3c.runtime.measure import speculation
from dsv3c.runtime.measure.speculation import COPY, HEAD, STORY, Comparison, Settings, compare
from dsv3c.runtime.measure.windows import Text
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.test_model import tokenizer_files

FEW = Settings(new_tokens=4, repetitions=2)
TEXT = Text("book.txt", "", "".join(chr(48 + 7 * i % 48) for i in range(70)))


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(
        "dsv3c.runtime.model.place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots))
    )
    folder = toy.write_artifact(tmp_path / "talking", **tokenizer_files())
    with load(folder, speculate="ngram", prefix_cache=False) as model:
        yield model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every answer that is asked for: prompt, temperature, seed, and who drafts."""
    found: list[dict[str, Any]] = []
    answer = speculation._answer

    def noted(model: Model, prompt: Any, count: int, temperature: float, seed: int) -> Any:
        drafts = model.engine.scheduler.speculator
        found.append({"prompt": prompt.tolist(), "temperature": temperature, "seed": seed, "drafts": drafts})
        return answer(model, prompt, count, temperature, seed)

    monkeypatch.setattr(speculation, "_answer", noted)
    return found


def test_every_kind_of_text_is_compared_at_every_temperature(talking: Model) -> None:
    found = compare(talking, FEW, TEXT)
    assert [(each.kind, each.temperature) for each in found] == [(STORY, 0), (STORY, 1), (COPY, 0), (COPY, 1)]
    for each in found:
        assert len(each.plain) == len(each.drafted) == 2 and min(*each.plain, *each.drafted) > 0
        assert (each.answers, each.same, each.tokens) == (2 * 3, 2 * 3, 2 * 3 * 3)
        assert each.fault is None
    assert talking.report()["cache_pages_free"] == talking.report()["cache_pages"]


def test_each_answer_is_generated_plainly_and_drafted_by_one_that_begins_anew_in_turns(
    talking: Model, asked: list[dict[str, Any]]
) -> None:
    loaded = talking.engine.scheduler.speculator
    compare(talking, FEW, TEXT)
    assert talking.engine.scheduler.speculator is loaded
    per_comparison = 2 + 2 * 3 * 2  # a warm-up of both ways; repetitions of three passages
    assert len(asked) == 4 * per_comparison
    drafters = []
    for start in range(0, len(asked), per_comparison):
        counted = asked[start + 2 : start + per_comparison]
        for first, second in zip(counted[::2], counted[1::2], strict=True):
            plain, drafted = (first, second) if first["seed"] % 2 else (second, first)
            assert plain["drafts"] is None and drafted["drafts"] is not None
            assert plain | {"drafts": 0} == drafted | {"drafts": 0}
        (own,) = {id(each["drafts"]): each["drafts"] for each in counted if each["drafts"] is not None}.values()
        assert len({(tuple(each["prompt"]), each["seed"]) for each in counted[::2]}) == 6
        drafters += [asked[start + 1]["drafts"], own]
    assert len({id(each) for each in [*drafters, loaded]}) == 9


def test_a_copy_repeats_the_beginning_of_a_passage_and_its_rest_is_an_answer(
    talking: Model, asked: list[dict[str, Any]]
) -> None:
    compare(talking, replace(FEW, repetitions=1, temperatures=(0.0,)), TEXT)
    tokens, begin = talking.tokenizer.encode_plain(TEXT.content), talking.tokenizer.encode("0")[:-1]
    request = talking.tokenizer.encode_plain(speculation.REQUEST)
    stories = list(dict.fromkeys(tuple(each["prompt"]) for each in asked[:8]))
    copies = list(dict.fromkeys(tuple(each["prompt"]) for each in asked[8:]))
    for start, story, copy in zip((0, 25, 50), stories, copies, strict=True):  # first, middle and last 20 tokens of 70
        passage = tokens[start : start + HEAD + 4]
        assert list(story) == [*begin, *passage[:HEAD]]
        assert list(copy) == [*begin, *passage, *request, *passage[:HEAD]]


def test_without_a_text_the_model_says_what_is_repeated(talking: Model, asked: list[dict[str, Any]]) -> None:
    found = compare(talking, replace(FEW, repetitions=1, temperatures=(0.0,)), None)
    count = len(speculation.OPENINGS)
    assert [each.answers for each in found] == [count, count]
    assert [(each["temperature"], each["seed"]) for each in asked[:count]] == [(1, i) for i in range(count)]
    assert len({tuple(each["prompt"]) for each in asked[count:]}) == 2 * count


def test_answers_that_differ_are_counted(talking: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = speculation._answer

    def other(model: Model, prompt: Any, count: int, temperature: float, seed: int) -> Any:
        found = answer(model, prompt, count, temperature, seed)
        if model.engine.scheduler.speculator is None or seed:
            return found
        return replace(found, generation=replace(found.generation, token_ids=(9,) * count))

    monkeypatch.setattr(speculation, "_answer", other)
    (story, _) = compare(talking, replace(FEW, temperatures=(0.0,)), TEXT)
    assert (story.answers, story.same) == (6, 5)


def test_what_does_not_fit_is_refused_before_anything_runs(talking: Model, asked: list[dict[str, Any]]) -> None:
    with pytest.raises(BenchTooLong):
        compare(talking, replace(FEW, new_tokens=40), TEXT)
    with pytest.raises(TextTooShort):
        compare(talking, FEW, Text("book.txt", "", TEXT.content[:19]))
    assert not asked


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, talking: Model) -> None:
    with load(toy.write_artifact(tmp_path / "mute"), speculate="ngram") as model, pytest.raises(TokenizerMissing):
        compare(model, FEW, TEXT)


def test_figures_of_a_comparison() -> None:
    found = Comparison(STORY, 0, (10.0, 20.0, 30.0), (20.0, 30.0, 33.0), Drafted(40, 10, 20), 100, 6, 6)
    assert found.ratio == 1.5
    assert (found.drafts_a_step, found.share_drafted) == (2, 0.1)
    assert replace(found, drafts=Drafted()).drafts_a_step == 0
    assert np.isclose(found.drafts.acceptance, 0.25)


def test_a_model_whose_default_is_beams_is_compared_without(talking: Model) -> None:
    talking.defaults = talking.defaults.updated({"num_beams": 2, "temperature": 0.0})
    (found, *_) = compare(talking, replace(FEW, repetitions=1, temperatures=(0.0,)), TEXT)
    assert found.tokens == 3 * 3
