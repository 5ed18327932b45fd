"""What is cached outlives the model: a text, or all there is, is saved, restored, and not read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.errors import ModelClosed, SavedDamaged
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


def test_all_texts_are_restored_at_once(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, after = models
    texts = [TEXT, [7, *TEXT], TEXT[:9] + [5] * 8]
    answers = before.generate_batch(texts, max_new_tokens=5, ignore_eos=True)
    saved = before.save_prefixes(tmp_path / "pages")
    assert after.restore_prefixes(tmp_path / "pages") == saved > 0
    for text, answer in zip(texts, answers, strict=True):
        again = after.generate(text, max_new_tokens=5, ignore_eos=True)
        assert (again.token_ids, again.cached_tokens) == (answer.token_ids, (len(text) - 1) // 4 * 4)
    for model in models:
        assert model.session.pool.free_pages == model.session.pool.pages


def test_a_model_without_a_prefix_cache_saves_and_restores_nothing(models: tuple[Model, Model], tmp_path: Path) -> None:
    before, _ = models
    before.save_prefixes(tmp_path / "pages")
    content = (tmp_path / "pages").read_bytes()
    with load(before.artifact.folder, prefix_cache=False) as model:
        assert model.restore_prefixes(tmp_path / "pages") == model.save_prefixes(tmp_path / "pages") == 0
    assert (tmp_path / "pages").read_bytes() == content
    with pytest.raises(ModelClosed):
        model.save_prefixes(tmp_path / "pages")
