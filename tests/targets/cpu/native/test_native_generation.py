"""Generation in C against the Python runtime: the same tokens and texts, whatever drafts are made."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsv3c import runtime
from dsv3c.runtime.model import Model as PythonModel
from dsv3c.targets.cpu import native
from dsv3c.targets.cpu.native.chat_pieces import ChatPieces
from dsv3c.targets.cpu.native.tables import plan_source
from tests.targets.cpu.native.binding import FINISH, SPECULATION, Event, Failure, Model

PROMPT = "Once upon a time there was a king who had three sons."
LONG = "The king gave the boy a golden apple, and the boy gave the apple to the queen. " * 36
COPIED = "'Good evening, mother,' said the boy.\n" * 9

GRID: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "the model's own": {"seed": 4},
    "top-k": {"seed": 5, "temperature": 1.1, "top_k": 20, "top_p": 1.0},
    "typical": {"seed": 6, "temperature": 1.0, "typical_p": 0.8, "min_p": 0.01},
    "penalties": {"seed": 7, "repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.2},
    "n-grams": {"temperature": 0.0, "no_repeat_ngram_size": 3},
    "bans": {"temperature": 0.0, "suppress_tokens": [272, 11], "bad_words_ids": [[13], [14, 5]], "logit_bias": {16: 3}},
    "an early end": {"seed": 1, "temperature": 1.2, "eos_token_id": [11, 13], "min_new_tokens": 20, "min_length": 25},
}


@pytest.fixture(scope="module")
def python(folder: Path) -> Iterator[PythonModel]:
    with runtime.load(folder) as model:
        yield model


def text_of(model: PythonModel, text: str) -> list[int]:
    return model.tokenizer.encode(text)


@pytest.mark.parametrize("speculate", SPECULATION)
@pytest.mark.parametrize("name", GRID)
def test_tokens_are_those_of_the_python_runtime(python: PythonModel, model: Model, name: str, speculate: str) -> None:
    prompt = text_of(python, PROMPT)
    expected = python.generate(prompt, max_new_tokens=70, **GRID[name])
    found = model.generate(prompt, speculate, max_new_tokens=70, **GRID[name])
    assert found.token_ids == expected.token_ids
    assert (found.text, found.finish_reason) == (expected.text, expected.finish_reason)
    assert found.statistics.tokens == len(expected.token_ids)


@pytest.mark.parametrize("speculate", ["ngram", "mtp"])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.1, "seed": 2}], ids=["greedy", "drawn"])
def test_drafts_of_a_text_that_repeats_come_true(
    python: PythonModel, model: Model, speculate: str, params: dict[str, Any]
) -> None:
    drafted = accepted = 0
    for end in range(120, 300, 30):  # of each, drafts are tried early, whatever steps take; some come true
        prompt = text_of(python, COPIED[:end])
        plain = model.generate(prompt, max_new_tokens=30, **params)
        found = model.generate(prompt, speculate, max_new_tokens=30, **params)
        assert found.token_ids == plain.token_ids
        assert found.statistics.steps + found.statistics.accepted == found.statistics.decoded == 29
        assert (plain.statistics.drafted, plain.statistics.steps) == (0, 29)
        drafted, accepted = drafted + found.statistics.drafted, accepted + found.statistics.accepted
    assert 0 < accepted <= drafted


def test_drafts_of_the_model_go_by_the_end_of_a_prompt_of_several_steps(python: PythonModel, model: Model) -> None:
    found = []
    for more in range(6):
        prompt = text_of(python, LONG + LONG[: 20 * more])
        assert len(prompt) > 600
        found.append(model.generate(prompt, "mtp", max_new_tokens=10, temperature=0.0).statistics.accepted)
    assert sum(found) > 0


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_stop_strings_end_the_text_wherever_they_begin(python: PythonModel, model: Model, speculate: str) -> None:
    prompt = text_of(python, PROMPT)
    whole = python.generate(prompt, temperature=0.0, max_new_tokens=60).text
    for begin in range(3, 60, 7):
        stops = (whole[begin + 20 : begin + 45], whole[begin : begin + 9], "never")
        params: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 60, "stop": stops}
        expected, found = python.generate(prompt, **params), model.generate(prompt, speculate, **params)
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        assert found.finish_reason == expected.finish_reason == "stop"
        assert not any(stop in found.text for stop in stops)


def test_what_begins_as_a_stop_string_and_is_none_is_told_at_the_end(python: PythonModel, model: Model) -> None:
    prompt = text_of(python, PROMPT)
    whole = model.generate(prompt, temperature=0.0, max_new_tokens=20)
    stop = whole.text[-5:] + "\N{SNOWMAN}"
    found = model.generate(prompt, temperature=0.0, max_new_tokens=20, stop=[stop])
    assert (found.text, found.texts[-1].decode(), found.finish_reason) == (whole.text, whole.text[-5:], "length")


def test_lengths_and_time_end_an_answer(python: PythonModel, model: Model) -> None:
    prompt = text_of(python, PROMPT)
    params: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    assert len(model.generate(prompt, max_length=len(prompt) + 9, **params).token_ids) == 9
    assert len(model.generate(prompt, **params).token_ids) == 256
    assert model.generate([5] * model.info.context, **params).token_ids == ()
    found = model.generate([5] * (model.info.context - 3), "ngram", **params)
    assert (len(found.token_ids), found.finish_reason) == (3, "length")


def test_time_begins_with_the_generation_whoever_takes_it(python: PythonModel, model: Model) -> None:
    for made in (model, python):
        found = made.generate([5, 6], max_time=1e-9, max_new_tokens=50)
        assert (found.token_ids, found.finish_reason) == ((), "time")
    generation, event = model.generation([5, 6], max_time=0.5, max_new_tokens=50, ignore_eos=True), Event()
    model.check(model.c.dsv3c_generation_next(generation, ctypes.byref(event)))
    time.sleep(0.6)  # the consumer's own time
    model.check(model.c.dsv3c_generation_next(generation, ctypes.byref(event)))
    model.c.dsv3c_generation_free(generation)
    assert (event.token, FINISH[event.finish]) == (-1, "time")


def test_drafts_take_no_pages_that_are_not_there(python: PythonModel, folder: Path) -> None:
    prompt = text_of(python, COPIED)[:40]
    small = Model(folder, context=64)
    for speculate in SPECULATION:
        found = small.generate(prompt, speculate, temperature=0.0, ignore_eos=True, max_new_tokens=24)
        assert len(found.token_ids) == 24
    small.close()


DEFAULTS = {
    "do_sample": True, "temperature": 0.7, "top_k": 40, "typical_p": 0.9, "min_new_tokens": 3, "max_new_tokens": 50,
    "suppress_tokens": [7, 8], "bad_words_ids": [[9], [10, 11]], "stop_strings": ["\u00f6?", "End"], "max_time": 2.5,
    "repetition_penalty": 1.1, "no_repeat_ngram_size": 4, "eos_token_id": [1, 5],
}  # fmt: skip
PRINT = """
#include <stdio.h>
#include "plan.h"
int main(void) {
  const dsv3c_parameters *p = &dsv3c_plan.parameters;
  const dsv3c_sampling *s = &p->sampling;
  printf("%g %d %g %d %d %g %d %g\\n", s->temperature, s->top_k, s->typical_p, s->min_new_tokens, p->max_new_tokens,
         s->repetition_penalty, s->no_repeat_ngram_size, p->max_time);
  for (size_t i = 0; i < s->suppress_tokens.count; i++) printf("%d ", s->suppress_tokens.ids[i]);
  for (size_t i = 0; i < s->eos_token_id.count; i++) printf("%d ", s->eos_token_id.ids[i]);
  for (size_t i = 0; i < s->bad_words_count; i++)
    printf("%d/%zu ", s->bad_words_ids[i].ids[0], s->bad_words_ids[i].count);
  for (size_t i = 0; i < p->stop_count; i++) printf("%.*s ", (int)p->stop[i].size, p->stop[i].text);
}
"""


def test_defaults_of_the_checkpoint_are_constants(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "generation_config.json").write_text(json.dumps(DEFAULTS), encoding="utf-8")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    files = {"plan.c": plan_source(copy, manifest, ChatPieces("none")), "main.c": PRINT}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["cc", "-std=c11", "-Werror", "-I", native.SOURCES, "-o", tmp_path / "print"]
    subprocess.run([*command, *(tmp_path / name for name in files)], check=True)
    found = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    assert found == "0.7 40 0.9 3 50 1.1 4 2.5\n7 8 1 5 9/1 10/2 ö? End "


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": []}, "BAD_ARGUMENT: the prompt has no tokens"),
    "a long prompt": ({"prompt": [5] * 2049}, "CONTEXT_EXCEEDED: the prompt of 2049 tokens is longer than the context"),
    "an unknown token": ({"prompt": [1, 2048]}, r"BAD_TOKEN: token id 2048 at position 1 is not in 0\.\.2047"),
    "max_new_tokens": ({"max_new_tokens": -1}, "BAD_ARGUMENT: max_new_tokens is out of range"),
    "max_time": ({"max_time": -1.0}, "BAD_ARGUMENT: max_time is out of range"),
    "min_new_tokens": ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens is above max_new_tokens: lower"),
    "min_length": ({"max_length": 3, "min_length": 4}, "min_length is above max_length: lower"),
    "no room": ({"max_length": 3, "min_new_tokens": 3}, "max_length has no room for min_new_tokens"),
    "max_length": ({"max_length": 2}, "max_length is 2 and the prompt alone has 2 tokens: raise it"),
    "stop": ({"stop": [""]}, "BAD_ARGUMENT: a stop string is empty"),
    "top_p": ({"top_p": 0.0}, "BAD_ARGUMENT: top_p is out of range"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_before_anything_runs(model: Model, name: str) -> None:
    params, message = WRONG[name]
    with pytest.raises(Failure, match=message):
        model.generation(**{"prompt": [1, 2], **params})


def test_a_generation_that_failed_says_so(model: Model) -> None:
    with pytest.raises(Failure, match="NO_TOKEN_ALLOWED: after 1 tokens every token is forbidden"):
        model.generate([5], suppress_tokens=range(2048))
