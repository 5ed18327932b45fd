"""How few tokens a text can become: never more than it does become."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from dsv3c.runtime.errors import ContextOverflow, PromptTooLong
from dsv3c.runtime.model import Model
from dsv3c.runtime.text import tokenizer as module
from dsv3c.runtime.text.token_bound import bytes_of_longest_token
from dsv3c.runtime.text.tokenizer import Tokenizer as Ours
from tests.runtime import toy

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(**model: object) -> Tokenizer:
    """Every byte, and `ab`, `abab`."""
    vocabulary = {token: number for number, token in enumerate([*BYTES, "ab", "abab"])}
    merges = [("a", "b"), ("ab", "ab")]
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **model))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return found


def test_the_longest_token_bounds_every_text() -> None:
    tokenizer = byte_level()
    assert bytes_of_longest_token(tokenizer) == 4
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.add_tokens(["\N{GRINNING FACE}\N{GRINNING FACE}"])
    longest = bytes_of_longest_token(tokenizer)
    assert longest == 8
    choose = random.Random(0)
    for _ in range(300):
        pieces = ["ab", "a", "abab", " ", "\n", "ö", "\N{GRINNING FACE}", "<bos>", "\0", "日本"]
        text = "".join(choose.choice(pieces) for _ in range(choose.randrange(40)))
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) * longest >= len(text.encode())


def normalised(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])


def dropping(tokenizer: Tokenizer) -> None:
    removed = pre_tokenizers.Split(" ", "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([removed, pre_tokenizers.ByteLevel(use_regex=False)])


def taking_space(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])


def by_words(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


@pytest.mark.parametrize("change", [normalised, dropping, taking_space, by_words])
def test_where_a_token_may_stand_for_any_text_nothing_is_said(change: Callable[[Tokenizer], None]) -> None:
    tokenizer = byte_level()
    change(tokenizer)
    assert bytes_of_longest_token(tokenizer) is None


def test_models_that_drop_or_join_what_they_do_not_know() -> None:
    assert bytes_of_longest_token(byte_level(unk_token="a", fuse_unk=True)) is None
    lacking = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(BYTES[1:])}, merges=[]))
    lacking.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert bytes_of_longest_token(lacking) is None
    assert bytes_of_longest_token(Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))) is None


def test_sequences_that_cut_only(bundled_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bundled_model / "tokenizer.json"))
    longest = bytes_of_longest_token(tokenizer)
    text = (bundled_model / "eval.txt").read_text(encoding="utf-8")[:20000]
    assert longest is not None
    assert len(tokenizer.encode(text).ids) * longest >= len(text.encode())


def test_a_prompt_that_cannot_fit_is_not_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = toy.toy_artifact(tmp_path / "toy")
    model = Model(artifact, toy.ToyDevice(artifact.plan, 64), context=16)
    tokenizer = byte_level()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompts = model._prompts
    prompts._tokenizer = Ours(tmp_path / "tokenizer.json", {"chat_template": "{{ messages[0].content }}"})
    prompts.encode("abab" * 16, None, any_length=False)
    monkeypatch.setattr(module, "_SHORT", 8)
    assert len(prompts.encode("abab" * 16, None, any_length=False)) == 16  # what fits is never refused
    monkeypatch.setattr(prompts._tokenizer, "_encoding", lambda *_: pytest.fail("it was encoded"))
    for prompt in ("abab" * 16 + "a", [{"role": "user", "content": "x" * 65}]):
        with pytest.raises(PromptTooLong, match="65 characters, at least 17 tokens, the context holds 16") as raised:
            model.stream(prompt)
        assert isinstance(raised.value, ContextOverflow)
