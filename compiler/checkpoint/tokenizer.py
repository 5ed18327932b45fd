"""The check that a tokenizer.json makes no token the model has no row for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, exists, quote, read_object
from dsv3c.compiler.errors import TokenizerVocabularyError

TOKENIZER = "tokenizer.json"


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raises JsonError or TokenizerVocabularyError; a folder without tokenizer.json passes."""
    if not exists(folder / TOKENIZER):
        return
    path = folder / TOKENIZER
    for token, number in _tokens(read_object(path, MAX_TABLE_BYTES), path):
        if type(number) is not int or not 0 <= number < vocab_size:
            reason = f"the token {quote(token)} has id {quote(number)}, expected an id below vocab_size {vocab_size}"
            raise TokenizerVocabularyError(path=path, reason=reason)


def _tokens(tokenizer: Mapping[str, Any], path: Path) -> Iterator[tuple[Any, Any]]:
    """(token, id) of the vocabulary, an object or, in Unigram models, a list, and of the added tokens."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list):
        yield from ((entry, number) for number, entry in enumerate(vocabulary))
    else:
        raise TokenizerVocabularyError(path=path, reason="it has no model.vocab")
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise TokenizerVocabularyError(path=path, reason="added_tokens is not a list of objects")
    yield from ((token.get("content"), token.get("id")) for token in added)
