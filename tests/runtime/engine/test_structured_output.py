"""Answers of the bundled model that follow a JSON schema, a grammar or a regular expression: they are what was asked
for, whatever is drawn, and the same alone, in a batch, with drafts."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors, load
from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.engine.speculation.ngram import NgramDrafter
from dsv3c.runtime.model import Model

PROMPT = "Once upon a time there was a king. In JSON he is "
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad", None]},
        "friends": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z]{1,6}$"}, "maxItems": 2},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
SUM = 'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/'
DRAWN = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 120}


@pytest.fixture(scope="module")
def artifact(bundled_artifact: Callable[..., Path]) -> Path:
    return bundled_artifact("float32")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact, max_batch=8) as model:
        yield model


@pytest.fixture(scope="module")
def drafting(artifact: Path) -> Iterator[Model]:
    with load(artifact, max_batch=4, speculate="ngram") as model:
        yield model


def require_described(value: Any) -> None:
    """By SCHEMA, read by hand."""
    assert set(value) <= set(SCHEMA["properties"])  # type: ignore[call-overload]
    assert isinstance(value["name"], str)
    assert 1 <= len(value["name"]) <= 12
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert value["mood"] in ("good", "bad", None)
    assert len(value.get("friends", [])) <= 2
    assert all(re.fullmatch("[A-Z][a-z]{1,6}", friend) for friend in value.get("friends", []))


def test_json_is_described_by_its_schema_whatever_is_drawn(model: Model) -> None:
    how = {**DRAWN, "num_return_sequences": 8}
    first = model.generate(PROMPT, **how, json_schema=SCHEMA, seed=1)
    second = model.generate(PROMPT, **how, json_schema=json.dumps(SCHEMA), seed=2)
    found = [first, *first.others, second, *second.others]
    for each in found:
        assert each.finish_reason == "stop"
        require_described(json.loads(each.text))
    assert len({each.text for each in found}) > 12


def test_a_text_is_matched_by_its_expression_whatever_is_drawn(model: Model) -> None:
    for pattern in (r"[0-9]{3}-[0-9]{4}", r"(the|a) (king|cow|hen)( and (the|a) (king|cow|hen)){0,2}[.!]", r"\w{2,9}"):
        first = model.generate(PROMPT, **DRAWN, regex=pattern, seed=3, num_return_sequences=8)
        for each in (first, *first.others):
            assert each.finish_reason == "stop"
            assert re.fullmatch(pattern, each.text)


def test_a_text_is_one_of_its_grammar_whatever_is_drawn(model: Model) -> None:
    first = model.generate("1+1=", **DRAWN, grammar=SUM, seed=3, num_return_sequences=8)
    done = [each for each in (first, *first.others) if each.finish_reason == "stop"]
    assert len(done) >= 4
    for each in done:
        assert re.fullmatch(r"[0-9+()]+", each.text)
        assert eval(each.text) > 0  # a sum in Python, too


def test_forced_tokens_are_read_together_and_not_drawn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, chunks = [], model.session.chunks
    monkeypatch.setattr(model.session, "chunks", lambda requests: steps.append(1) or chunks(requests))
    found = model.generate(PROMPT, **DRAWN, json_schema=SCHEMA, seed=1)
    drawn = len(found.token_ids) - found.forced_tokens
    assert found.forced_tokens > 15
    # One for each that was drawn; the first comes with the prompt, the end is no step of its own.
    assert len(steps) == drawn < len(found.token_ids)


def test_forced_tokens_that_were_cached_are_none_of_the_prompt(model: Model) -> None:
    forced = "the king of the golden mountain, who had three sons and a daughter, and the name of the first was "
    found = [model.generate(PROMPT, **DRAWN, regex=f"{forced}[A-Z][a-z]", seed=1) for _ in range(2)][-1]
    assert found.forced_tokens > model.artifact.plan.page_size
    assert 0 < found.cached_tokens <= found.prompt_tokens


def test_what_is_forced_altogether_takes_no_step(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.session, "chunks", lambda requests: pytest.fail("a step"))
    events = list(model.stream(PROMPT, regex="hello world"))
    assert "".join(event.text for event in events) == "hello world"
    assert [event.token_id for event in events][:-1] == model.tokenizer.encode_plain("hello world")
    found = events[-1].generation
    assert found is not None
    assert (found.finish_reason, found.forced_tokens) == ("stop", len(found.token_ids))
    assert model.generate(PROMPT, regex="").finish_reason == "stop"


class Knowing(NgramDrafter):
    """Drafts that are right as often as not, from answers by their prompts."""

    name = "knowing"

    def __init__(self, answers: Mapping[tuple[int, ...], Many[int]]) -> None:
        super().__init__(most=4)
        self._answers = answers
        self._random = np.random.default_rng(7)

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        return [self._drafts(each.lane.history, count) for each in drafting]

    def _drafts(self, history: History, count: int) -> Ints:
        answer = self._answers[tuple(history.tokens[: history.prompt_length].tolist())]
        drafts = np.array(answer[history.generated.size :][:count], np.int32)
        return np.where(self._random.random(drafts.size) < 0.8, drafts, drafts + 1).astype(np.int32)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_seed_is_the_same_text_alone_in_a_batch_and_with_drafts(
    model: Model, drafting: Model, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    how = {**DRAWN, "temperature": temperature, "seed": 11, "max_new_tokens": 60, "json_schema": SCHEMA}
    prompts = [model.tokenizer.encode(text) for text in (PROMPT, "1, 2, 3, 4", '{"name": "Ann", "age": 20}')]
    alone = [model.generate(prompt, **how).token_ids for prompt in prompts]
    assert [each.token_ids for each in model.generate_batch(prompts, **how)] == alone
    speculator = drafting.engine.scheduler.speculator
    assert speculator is not None
    answers = dict(zip(map(tuple, prompts), alone, strict=True))
    monkeypatch.setattr(speculator, "drafter", Knowing(answers))
    monkeypatch.setattr(speculator.lengths, "choose", lambda lanes, rates, room, *rest: min(4, room // max(lanes, 1)))
    drafted = drafting.generate_batch(prompts, **how)
    assert [each.token_ids for each in drafted] == alone
    assert 0 < sum(each.drafted.accepted for each in drafted) < sum(each.drafted.proposed for each in drafted)


def test_others_in_the_batch_write_as_they_like(model: Model) -> None:
    how = {**DRAWN, "seed": 2, "max_new_tokens": 30}
    plain = model.generate(PROMPT, **how)
    tickets = [model.submit(PROMPT, **how, regex="[a-z ]{5}"), model.submit(PROMPT, **how)]
    constrained, free = [ticket.results()[0] for ticket in tickets]
    assert re.fullmatch("[a-z ]{5}", constrained.text)
    assert free.token_ids == plain.token_ids
    assert free.forced_tokens == 0


def test_beams_follow_a_grammar(model: Model) -> None:
    how = {"do_sample": False, "json_schema": SCHEMA, "max_new_tokens": 80}
    first = model.generate(PROMPT, **how, num_beams=4, num_return_sequences=4)
    scores = [each.score for each in (first, *first.others)]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    assert len({each.text for each in (first, *first.others)}) == 4
    for each in (first, *first.others):
        require_described(json.loads(each.text))


def test_the_best_beams_are_the_likeliest_texts_of_the_grammar(model: Model) -> None:
    letters = {letter: model.tokenizer.encode_plain(letter) for letter in "abcd"}  # one token each, and no other way
    prompt, (end,) = model.tokenizer.encode("There was a"), model.end_tokens
    worth = {}
    for letter, (token,) in letters.items():
        rows = model.logits([*prompt, token])[-2:].astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
        worth[letter] = (logs[0, token] + logs[1, end]) / 2
    found = model.generate(
        prompt, do_sample=False, num_beams=4, num_return_sequences=4, max_new_tokens=9, regex="[a-d]"
    )
    assert [each.text for each in (found, *found.others)] == sorted(worth, key=lambda letter: -worth[letter])
    for each in (found, *found.others):
        assert each.score == pytest.approx(worth[each.text], abs=1e-4)


def test_logarithms_of_forced_tokens_are_told_and_change_nothing(model: Model) -> None:
    how = {**DRAWN, "json_schema": SCHEMA, "seed": 5}
    plain, told = model.generate(PROMPT, **how), model.generate(PROMPT, **how, logprobs=0)
    assert told.token_ids == plain.token_ids
    assert told.forced_tokens == plain.forced_tokens
    assert [each.token_id for each in told.logprobs] == list(told.token_ids)
    assert all(each.logprob < 0 for each in told.logprobs)


@pytest.mark.parametrize("limit", [1, 3, 20])
def test_a_grammar_that_meets_the_limit_is_broken_off(model: Model, limit: int) -> None:
    found = model.generate(PROMPT, **{**DRAWN, "max_new_tokens": limit}, json_schema=SCHEMA, seed=1)
    assert (found.finish_reason, len(found.token_ids)) == ("length", limit)
    whole = model.generate(PROMPT, **DRAWN, json_schema=SCHEMA, seed=1)
    assert whole.token_ids[:limit] == found.token_ids


def test_a_grammar_that_ends_with_the_last_token_there_is_room_for_is_complete(model: Model) -> None:
    for how in ({"regex": "hello world"}, {"regex": "[a-d]{3}", "seed": 1}, {"regex": "(ab|cd)", "seed": 1}):
        whole = model.generate(PROMPT, **{**DRAWN, **how})
        short = model.generate(PROMPT, **{**DRAWN, **how, "max_new_tokens": len(whole.token_ids)})
        assert (short.text, short.finish_reason) == (whole.text, "stop")


def test_a_forbidden_token_is_not_forced(model: Model) -> None:
    tokens = model.tokenizer.encode_plain("hello")
    how = {**DRAWN, "regex": "hello", "seed": 1}
    with pytest.raises(errors.NoTokenAllowed, match="json_schema, grammar or regex"):
        model.generate(PROMPT, **how, suppress_tokens=[tokens[0]])
    with pytest.raises(errors.NoTokenAllowed, match="min_new_tokens"):
        model.generate(PROMPT, **how, min_new_tokens=20)
    assert model.generate(PROMPT, **how, suppress_tokens=[5]).text == "hello"


def test_an_end_token_of_the_request_ends_the_grammar(model: Model) -> None:
    (end,) = model.tokenizer.encode_plain(" will")
    first = model.generate(PROMPT, **DRAWN, regex="[a-z ]{4,30}", seed=2, eos_token_id=end, num_return_sequences=4)
    for each in (first, *first.others):
        assert end not in each.token_ids
        assert each.finish_reason == "stop"
        assert re.fullmatch("[a-z ]{4,30}", each.text)


def test_what_is_wrong_is_told_before_anything_runs(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.session, "chunks", lambda requests: pytest.fail("a step"))
    free = model.report()["cache_pages_free"]
    for wrong in ({"regex": "("}, {"grammar": "start: a"}, {"json_schema": {"type": "x"}}):
        with pytest.raises(errors.GrammarInvalid):
            model.submit(PROMPT, **wrong)
    assert model.report()["cache_pages_free"] == free


def test_a_request_goes_on_in_any_thread(model: Model) -> None:
    how = {**DRAWN, "json_schema": SCHEMA, "seed": 9}
    expected, ticket, found = model.generate(PROMPT, **how).text, model.submit(PROMPT, **how), []
    events = iter(ticket)
    next(events)
    thread = threading.Thread(target=lambda: found.extend(ticket.results()))
    thread.start()
    thread.join()
    assert found[0].text == expected


def test_a_small_cache_is_read_again_and_changes_nothing(artifact: Path, model: Model) -> None:
    how = {**DRAWN, "json_schema": SCHEMA, "seed": 4}
    expected = [model.generate(PROMPT + str(number), **how).token_ids for number in range(4)]
    with load(artifact, context=112, max_batch=1, prefix_cache=False) as small:
        found = small.generate_batch([PROMPT + str(number) for number in range(4)], **how)
    assert [each.token_ids for each in found] == expected


def test_a_window_that_slides_keeps_to_the_grammar(artifact: Path) -> None:
    with load(artifact, context=48) as small:
        found = small.generate(PROMPT, **DRAWN, regex="([a-z]{3}, and now [A-Z]{2}! ){9}", seed=3, overflow="slide")
    assert found.dropped_tokens > 0
    assert re.fullmatch("([a-z]{3}, and now [A-Z]{2}! ){9}", found.text)
