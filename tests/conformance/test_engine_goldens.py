"""The stored texts and scores of tests/goldens/engine are what transformers gives: some of them, made again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: make conformance")
pytest.importorskip("transformers", reason="transformers is not installed: make conformance")

from tests.conformance.make_engine_goldens import CASES, FOLDER, TEXTS, WAYS, Generator, processors, tokens_of

AGAIN = (1, 30)  # prompts
SCORE_LIMIT = 1e-4


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator(tmp_path_factory.mktemp("dequantised"))


@pytest.fixture(scope="module")
def decoding() -> Any:
    return json.loads((FOLDER / "decoding.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WAYS)
def test_texts(name: str, generator: Generator, decoding: Any) -> None:
    way = decoding["ways"][name]
    assert way["params"] == WAYS[name] and len(way["results"]) == len(decoding["prompts"])
    for index in AGAIN:
        (found,) = generator.generate([decoding["prompts"][index]], WAYS[name], decoding["new_tokens"])
        assert tokens_of(found) == tokens_of(way["results"][index])
        scores = [[text["score"] or 0 for text in texts] for texts in (found, way["results"][index])]
        np.testing.assert_allclose(*scores, rtol=SCORE_LIMIT)


def test_scores(generator: Generator, decoding: Any) -> None:
    found = processors(generator, decoding["prompts"])
    with np.load(FOLDER / "processors.npz") as file:
        assert sorted(file) == sorted(found) and json.loads(str(file["cases"])) == json.loads(json.dumps(CASES))
        for text in range(len(TEXTS)):
            for what in ("prompt", "answer"):
                np.testing.assert_array_equal(file[f"{what}.{text}"], found[f"{what}.{text}"])
            np.testing.assert_allclose(file[f"logits.{text}"], found[f"logits.{text}"], atol=1e-3)
            for case in CASES:
                for what in ("banned", "changed"):
                    np.testing.assert_array_equal(file[f"{case}.{text}.{what}"], found[f"{case}.{text}.{what}"])
                np.testing.assert_allclose(file[f"{case}.{text}.values"], found[f"{case}.{text}.values"], atol=1e-3)


def test_there_are_texts_of_every_kind(decoding: Any) -> None:
    """Some end early, and each parameter changes some result."""
    results = {name: [tokens_of(texts) for texts in way["results"]] for name, way in decoding["ways"].items()}
    ended = results["4 beams to a full stop"]
    assert 5 < sum(len(texts[0]) < decoding["new_tokens"] for texts in ended) < len(ended)
    for name in ("4 beams", "short", "long", "early"):
        assert results[name] != ended, name
