"""Beam search on the toy, whose logits are a formula, against a plain reading of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.test_model import tokenizer_files
from tests.runtime.toy import expected_logits

PROMPT = [7, 3, 9, 12, 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    artifact = toy.toy_artifact(tmp_path_factory.mktemp("toy"), T=16, R=8, S=8)
    return Model(artifact, toy.ToyDevice(artifact.plan, 256), context=64)


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits.astype(np.float64) - logits.max()
    found: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum())
    return found


def diverse_beams(prompt: list[int], length: int, groups: int, size: int, penalty: float) -> list[tuple[int, ...]]:
    """Algorithm 1 of arXiv 1610.02424 with Hamming diversity: texts of `length` tokens, the likeliest first.

    At each time the groups choose one after the other. A group takes the best `size` of the continuations of its own
    beams, by their log-probability less `penalty` for each beam of a group before it that chose the same token at this
    time. What a beam is worth later is its log-probability alone.
    """
    beams: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(groups)]
    for _ in range(length):
        chosen: list[int] = []
        for group in range(groups):
            options = [
                (score + row[token], (*text, token), score + row[token] - penalty * chosen.count(token))
                for score, text in beams[group]
                for row in [log_softmax(expected_logits([*prompt, *text])[-1])]
                for token in range(toy.VOCAB)
            ]
            options.sort(key=lambda option: -option[2])
            beams[group] = [(score, text) for score, text, _ in options[:size]]
            chosen += [text[-1] for _, text in beams[group]]
    found = sorted((beam for group in beams for beam in group), key=lambda beam: -beam[0])
    return [text for _, text in found]


@pytest.mark.parametrize(
    ("groups", "size", "penalty"), [(1, 4, 0.0), (1, 2, 0.0), (2, 2, 0.51), (2, 3, 3.01), (4, 1, 1.03), (3, 2, 20.1)]
)
def test_groups_find_what_a_plain_reading_finds(model: Model, groups: int, size: int, penalty: float) -> None:
    beams = groups * size
    found = model.generate(
        PROMPT,
        num_beams=beams,
        num_beam_groups=groups,
        num_return_sequences=beams,
        max_new_tokens=6,
        ignore_eos=True,
        **({"diversity_penalty": penalty} if penalty else {}),
    )
    texts = [each.token_ids for each in (found, *found.others)]
    assert texts == diverse_beams(PROMPT, 6, groups, size, penalty)
    scores = [each.score for each in (found, *found.others)]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


def test_a_score_is_the_mean_log_probability(model: Model) -> None:
    found = model.generate(PROMPT, num_beams=3, max_new_tokens=5, ignore_eos=True)
    total = 0.0
    for place, token in enumerate(found.token_ids):
        total += log_softmax(expected_logits([*PROMPT, *found.token_ids[:place]])[-1])[token]
    assert found.score == pytest.approx(total / 5, rel=1e-5)


def test_four_beams_take_the_pages_of_one_prompt_and_of_their_tails(model: Model) -> None:
    prompt = [int(token) for token in np.random.default_rng(3).integers(0, toy.VOCAB, 40)]
    pool = model.session.pool
    model.engine.scheduler.prefix_cache.clear()  # type: ignore[union-attr]
    least = pool.free_pages
    before = least
    ticket = model.submit(prompt, num_beams=4, max_new_tokens=9, ignore_eos=True)
    while not model.engine.scheduler.idle:
        model.engine.scheduler.step()
        least = min(least, pool.free_pages)
    tails = 4 * -(-9 // pool.page_size)
    assert before - least <= 40 // pool.page_size + tails
    assert ticket.results()[0].finish_reason == "length"
    assert pool.free_pages == before


def test_a_stop_string_ends_a_beam_and_is_not_in_the_text(tmp_path: Path) -> None:
    artifact = Artifact.open(toy.write_artifact(tmp_path / "toy", **tokenizer_files()))
    talking = Model(artifact, toy.ToyDevice(artifact.plan, 192), context=64)
    plain = talking.generate("AB", num_beams=2, max_new_tokens=8, ignore_eos=True)
    stop = plain.text[3:5]
    found = talking.generate("AB", num_beams=2, max_new_tokens=8, ignore_eos=True, stop=[stop])
    assert stop not in found.text
    assert found.finish_reason in ("stop", "length")


def test_beams_that_are_read_again_go_on_as_they_were(tmp_path: Path) -> None:
    """A cache for little more than one request: the second one pushes beams out, or waits for them."""
    artifact = toy.toy_artifact(tmp_path, T=16, R=8, S=6)
    small = Model(artifact, toy.ToyDevice(artifact.plan, 64), context=40)
    tickets = [small.submit([n, *PROMPT], num_beams=3, max_new_tokens=12, ignore_eos=True) for n in (1, 2)]
    for n, ticket in zip((1, 2), tickets, strict=True):
        assert ticket.results()[0].token_ids == diverse_beams([n, *PROMPT], 12, 1, 3, 0.0)[0]
    assert small.session.pool.free_pages == 16


@pytest.mark.parametrize("penalty", [1e3, -1e3, 1e300, -1e300])
@pytest.mark.filterwarnings("error")
def test_no_length_penalty_is_too_large_to_compute(model: Model, penalty: float) -> None:
    def found(penalty: float) -> tuple[int, ...]:
        return model.generate(PROMPT, num_beams=3, length_penalty=penalty, max_new_tokens=9).token_ids

    assert found(penalty) == found(20.0 if penalty > 0 else -20.0)
