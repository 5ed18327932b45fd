"""Whole measurements on the toy, whose logits are known, and on stand-ins for models that are large."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import model as model_module
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.errors import ContextInvalid, LogitsNotFinite, TextTooShort, TokenizerMissing, VocabulariesDiffer
from dsv3c.runtime.measure.divergence import Estimate
from dsv3c.runtime.measure.quality import Report, evaluate, measure
from dsv3c.runtime.measure.windows import Settings, Text, Window
from tests.checkpoints import write_tokenizer
from tests.runtime import toy
from tests.runtime.test_stored_artifacts import STORED, VERSIONS

WORDS = "A HEN AND A LION BAKE A CAKE. A CHILD CAME: AM I LIKE A LION? NO, LIKE A HEN. AND HE FELL IN A LAKE."  # A to O


def token_ids(words: str) -> np.ndarray:
    """As the tokenizer of these tests has them: a token a character, behind two special ones."""
    return np.array([ord(letter) - 32 + 2 for letter in words], np.int32)


def plain_nll(ids: np.ndarray, context: int) -> np.ndarray:
    """The definition: windows that start cold, each token but the first given those before it in its window."""
    found = []
    for start in range(0, ids.size - 1, context):
        part = ids[start : start + context + 1]
        logits = toy.expected_logits(part[:-1]).astype(np.float64)
        found.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(part.size - 1), part[1:]])
    return np.concatenate(found)


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[toy.ToyDevice]:
    """What ran, in the order in which it was loaded."""
    made: list[toy.ToyDevice] = []

    def place(artifact: Any, slots: int, placement: Placement) -> Any:
        made.append(toy.ToyDevice(artifact.plan, slots))
        return artifact, made[-1]

    monkeypatch.setattr(model_module, "place", place)
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """An artifact of the toy with a tokenizer, by name and bounds of its plan."""

    def artifact(name: str, **bounds: int) -> Path:
        write_tokenizer(tmp_path, toy.VOCAB)
        files = {"tokenizer__json": (tmp_path / "tokenizer.json").read_bytes()}
        return toy.write_artifact(tmp_path / name, toy.plan_content(**bounds), **files)

    return artifact


def run(out: Path, text: Path, against: Path | None = None, **settings: Any) -> Report:
    return evaluate(out, [text], Settings(**settings), Placement(), against)


@pytest.mark.parametrize("context", [5, 16, 64])
def test_perplexity_is_that_of_the_definition(
    context: int, make: Callable[..., Path], text: Path, devices: list[toy.ToyDevice]
) -> None:
    (quality,) = run(make("out"), text, context=context).texts
    expected = plain_nll(token_ids(WORDS), context)
    assert quality.tokens == len(WORDS) - 1
    assert quality.nll.value == pytest.approx(expected.mean())
    assert quality.nll.error == pytest.approx(expected.std(ddof=1) / math.sqrt(expected.size))
    assert quality.perplexity.value == pytest.approx(math.exp(expected.mean()))
    assert quality.divergence is None and devices[0].closed


def test_a_window_is_as_long_as_the_model_takes(
    make: Callable[..., Path], text: Path, devices: list[toy.ToyDevice]
) -> None:
    assert run(make("out"), text).context == 64
    with pytest.raises(ContextInvalid, match="context is 65, it must be an integer from 1 to 64"):
        run(make("other"), text, context=65)


def test_steps_have_rows_for_all_their_tokens(
    make: Callable[..., Path], text: Path, devices: list[toy.ToyDevice]
) -> None:
    """Those of both models: 4 of one, 3 of the other."""
    run(make("out"), text, make("other", R=3), context=8, tokens=80)
    assert {(tokens, rows) for _, tokens, rows in devices[0].steps} == {(3, 3), (2, 2)}
    assert [step[1:] for step in devices[0].steps] == [step[1:] for step in devices[1].steps]


def test_an_artifact_against_itself_does_not_differ(
    make: Callable[..., Path], text: Path, devices: list[toy.ToyDevice]
) -> None:
    out = make("out")
    report = run(out, text, out)
    (quality,) = report.texts
    assert quality.divergence is not None
    assert (quality.divergence.kl, quality.divergence.top1) == (Estimate(0, 0), Estimate(1, 0))
    assert quality.divergence.reference == quality.perplexity
    assert report.against == str(out)


def test_what_is_written_has_errors_beside_values(
    make: Callable[..., Path], text: Path, devices: list[toy.ToyDevice]
) -> None:
    out = make("out")
    content = run(out, text, out, tokens=40).to_dict()
    assert {name: content[name] for name in ("device", "context", "bos")} == {
        "device": "toy",
        "context": 64,
        "bos": "text",
    }
    (figures,) = content["texts"]
    assert (figures["text"], figures["tokens"], figures["windows"]) == ("words.txt", 40, 1)
    assert figures["perplexity"] == figures["against"]["reference"]
    assert {"nll_error", "perplexity_error"} <= figures.keys()
    assert {"kl", "kl_error", "kl_99", "top1_error", "ratio_error", "logit_error"} <= figures["against"].keys()


def test_models_that_read_the_text_otherwise_are_not_compared(
    make: Callable[..., Path], tmp_path: Path, text: Path, devices: list[toy.ToyDevice]
) -> None:
    out = make("out")
    tokenizer = (tmp_path / "tokenizer.json").read_text().replace('"A": 35, "B": 36', '"A": 36, "B": 35')
    other = toy.write_artifact(tmp_path / "other", tokenizer__json=tokenizer.encode())
    with pytest.raises(VocabulariesDiffer, match=r"their tokenizers have other tokens for words.txt"):
        run(out, text, other)
    assert all(device.closed for device in devices)


def test_another_tokenizer_file_that_reads_the_text_alike_is_none(
    make: Callable[..., Path], tmp_path: Path, text: Path, devices: list[toy.ToyDevice]
) -> None:
    out = make("out")
    other = toy.write_artifact(tmp_path / "b", tokenizer__json=(tmp_path / "tokenizer.json").read_bytes() + b"\n")
    assert run(out, text, other).texts[0].divergence is not None
    assert run(out, text, toy.write_artifact(tmp_path / "without")).texts[0].divergence is not None


def test_vocabularies_of_other_sizes_are_not_compared(make: Callable[..., Path], text: Path) -> None:
    with pytest.raises(VocabulariesDiffer, match=f"{toy.VOCAB} tokens against "):
        run(make("out"), text, STORED / f"v{VERSIONS[-1]}" / "model")


def test_a_text_needs_a_tokenizer_and_enough_tokens(
    make: Callable[..., Path], tmp_path: Path, text: Path, devices: list[toy.ToyDevice]
) -> None:
    with pytest.raises(TokenizerMissing):
        run(toy.write_artifact(tmp_path / "without"), text)
    text.write_text("A KING.")
    with pytest.raises(TextTooShort, match=r"words.txt is too short to measure with: it has 7 tokens"):
        run(make("out"), text)


class Large:
    """A model of many tokens whose logits are drawn anew for each step; a session and sequences in one."""

    def __init__(self, vocab: int, seed: int) -> None:
        self.session = self
        self.plan = SimpleNamespace(bounds=SimpleNamespace(T=512, R=64))
        self.artifact = SimpleNamespace(folder=Path("LARGE"))
        self.vocab, self.rng = vocab, np.random.default_rng(seed)

    def new_sequence(self) -> Large:
        return self

    def close(self) -> None: ...

    def run(self, requests: Any) -> list[np.ndarray]:
        return [self.rng.standard_normal((requests[0].tokens.size, self.vocab), np.float32)]


def large_windows(count: int, size: int) -> Iterator[Window]:
    for _ in range(count):
        yield Window(np.zeros(size, np.int32), np.zeros(size, np.int32), 0)


def test_logits_of_a_text_are_never_kept() -> None:
    """Of 1024 positions of two models they would be 32 MiB; those of a step are 2 MiB, and their doubles 4."""
    models: Any = [Large(4096, 0), Large(4096, 1)]
    tracemalloc.start()
    try:
        quality = measure(models, Text("a text", "", ""), list(large_windows(2, 512)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert quality.tokens == 1024
    assert peak < 18 << 20


def test_logits_that_are_not_finite_end_it() -> None:
    model: Any = Large(8, 0)
    model.run = lambda requests: [np.full((requests[0].tokens.size, 8), np.nan, np.float32)]
    with pytest.raises(LogitsNotFinite, match="nan, by LARGE"):
        measure([model], Text("a text", "", ""), list(large_windows(1, 64)))
