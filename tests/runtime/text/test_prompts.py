"""What a model is asked, as token ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.errors import PromptTooLong, TokenizerMissing
from dsv3c.runtime.text import tokenizer
from dsv3c.runtime.text.prompts import Prompts


@pytest.fixture
def artifact(bundled_artifact: Callable[..., Path], tmp_path: Path) -> Artifact:
    """One of the test's own, so that its files may be changed."""
    return Artifact.open(shutil.copytree(bundled_artifact("int8"), tmp_path / "artifact"))


def test_a_text_is_encoded_and_ids_stay_as_they_are(artifact: Artifact) -> None:
    prompts = Prompts(artifact, 16)
    ids = prompts.encode("Once upon a time", add_bos=None, any_length=False)
    assert prompts.tokenizer.decode(ids) == "Once upon a time"
    assert prompts.encode(ids, add_bos=None, any_length=False) is ids


def test_a_text_that_cannot_fit_is_refused_unless_it_may_have_any_length(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "_SHORT", 8)
    prompts, text = Prompts(artifact, 16), "Once upon a time " * 1000
    with pytest.raises(PromptTooLong):
        prompts.encode(text, add_bos=None, any_length=False)
    assert len(prompts.encode(text, add_bos=None, any_length=True)) > 16


def test_the_tokenizer_is_that_of_the_artifact_that_was_opened(artifact: Artifact) -> None:
    prompts, before = Prompts(artifact, 16), Prompts(artifact, 16).encode("Once upon", None, any_length=False)
    (artifact.folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert prompts.encode("Once upon", None, any_length=False) == before


def test_text_for_an_artifact_without_a_tokenizer_is_an_error_and_ids_are_none(artifact: Artifact) -> None:
    files = {name: entry for name, entry in artifact.manifest.files.items() if name != "tokenizer.json"}
    without = replace(artifact, manifest=replace(artifact.manifest, files=files))
    prompts = Prompts(without, 16)
    assert not prompts.has_tokenizer
    assert prompts.encode([1, 2], None, any_length=False) == [1, 2]
    with pytest.raises(TokenizerMissing):
        prompts.encode("Once", None, any_length=False)
