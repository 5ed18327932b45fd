"""What tests of the driver compile, and for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler.driver import pipeline
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer
from tests.compiler.driver.fake_target import FakeTarget


@pytest.fixture
def fake_target(monkeypatch: pytest.MonkeyPatch) -> FakeTarget:
    """The target that everything is compiled for."""
    target = FakeTarget()
    monkeypatch.setattr(pipeline.targets, "get", lambda name: target)
    return target


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of words that the tokenizer of `readable` has tokens for."""
    path = tmp_path / "words.txt"
    words = "Once upon a time there was a king who had three daughters, and the youngest went into the forest. "
    path.write_text(words * 3)
    return path


@pytest.fixture
def readable(tmp_path: Path) -> Path:
    """A tiny checkpoint with a tokenizer, a token a character."""
    folder = tmp_path / "tiny"
    write_checkpoint(folder, tiny_config(num_hidden_layers=2))
    write_tokenizer(folder, 96)
    return folder
