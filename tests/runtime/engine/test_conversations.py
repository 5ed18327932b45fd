"""What is cached of a text outlives the model: it is saved, restored, and not read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.errors import SavedDamaged
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.cli.toy_program import use_toy_device

TEXT = list(range(3, 22))


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Model, Model]]:
    """Two of one artifact, as before and after a restart."""
    use_toy_device(monkeypatch.setattr)
    artifact = toy.write_artifact(tmp_path / "toy")
    with load(artifact) as before, load(artifact) as after:
        yield before, after


def test_a_restored_text_is_not_read_again(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, after = models
    answer = before.generate(TEXT, max_new_tokens=6, ignore_eos=True)
    tokens = [*TEXT, *answer.token_ids]
    before.save_session(tmp_path / "text", tokens, {"name": "a text"})
    found, extra = after.restore_session(tmp_path / "text")
    assert (found.tolist(), extra) == (tokens, {"name": "a text"})
    prompt = [*tokens, 7, 8]
    expected = before.generate(prompt, max_new_tokens=5, ignore_eos=True)
    again = after.generate(prompt, max_new_tokens=5, ignore_eos=True)
    assert again.cached_tokens == 24 == len(tokens) - 1  # all of the cache's full pages; the last token was never fed
    assert again.token_ids == expected.token_ids
    for model in models:
        assert model.session.pool.free_pages == model.session.pool.pages


def test_of_what_is_not_cached_the_tokens_are_saved(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, after = models
    before.save_session(tmp_path / "text", TEXT)
    found, extra = after.restore_session(tmp_path / "text")
    assert (found.tolist(), extra) == (TEXT, {})
    assert after.generate(TEXT, max_new_tokens=1).cached_tokens == 0


def test_of_a_text_beyond_the_context_its_beginning_is_saved(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, after = models
    before.save_session(tmp_path / "text", [5] * 100)
    assert after.restore_session(tmp_path / "text")[0].size == after.context == 64


def test_a_damaged_file_leaves_the_model_as_it_was(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, after = models
    before.generate(TEXT, max_new_tokens=1)
    before.save_session(tmp_path / "text", TEXT)
    content = bytearray((tmp_path / "text").read_bytes())
    content[-40] ^= 1
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(SavedDamaged):
        after.restore_session(tmp_path / "text")
    assert after.generate(TEXT, max_new_tokens=1).cached_tokens == 0
    assert after.session.pool.free_pages == after.session.pool.pages
