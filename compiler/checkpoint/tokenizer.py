"""The ids of a checkpoint's text files, against the rows that the model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.checkpoint.errors import TokenizerVocabularyError
from dsv3c.compiler.checkpoint.files import quote, read_object_of
from dsv3c.compiler.checkpoint.sides import TOKENIZER, side_path, usable_tokenizer

_MAX_ID = 2**24  # of a tokenizer; published ones have less than a sixteenth


def check_tokenizer(checkpoint: Path, vocab_size: int) -> tuple[str, ...]:
    """A note if tokenizer.json has tokens that the model has no row for: running one of them is an error then.

    Raises JsonError, TokenizerVocabularyError, TiktokenError; a checkpoint that only has a use for ids passes.
    """
    data = usable_tokenizer(checkpoint)
    if data is None:
        return ()
    path = side_path(checkpoint, TOKENIZER)
    beyond: dict[int, Any] = {}
    for token, number in _tokens(read_object_of(data, path), path):
        if type(number) is not int or not 0 <= number < _MAX_ID:
            reason = f"the token {quote(token)} has id {quote(number)}, expected an id below {_MAX_ID}"
            raise TokenizerVocabularyError(path=path, reason=reason)
        if number >= vocab_size:
            beyond[number] = token
    if not beyond:
        return ()
    number = min(beyond)
    which = f"{len(beyond)} tokens beyond the vocab_size of {vocab_size}"
    example = f"such as {quote(beyond[number])} with id {number}"
    return (f"{TOKENIZER} has {which}, {example}: the model cannot run a text with one of them",)


def usable_ids(values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`values` of a config.json without special ids that the model has no row for, and a sentence for each of these.

    A list of one BOS or pad id is that id. Values of other types stay, for who reads them to refuse.
    """
    known, notes = dict(values), []
    size = values.get("vocab_size")
    if type(size) is not int:
        return known, ()
    for key in ("bos_token_id", "pad_token_id", "eos_token_id"):
        found = known.get(key)
        ids: list[Any] = found if isinstance(found, list) else [found]
        if not all(type(number) is int for number in ids):
            continue
        kept = [number for number in ids if 0 <= number < size]
        if len(kept) < len(ids):
            notes.append(f"config.json: {key} is {quote(found)}; ids that are not below {size} are left out")
        if key == "eos_token_id":
            known[key] = kept
            continue
        known[key] = kept[0] if len(kept) == 1 else None
        if len(kept) > 1:
            notes.append(f"config.json: {key} is {quote(found)}, more than one id; it is left out")
    return known, tuple(notes)


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
