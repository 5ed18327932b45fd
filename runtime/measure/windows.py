"""A text as windows of tokens that a model reads cold, one after another: what it is given, and what it is to predict.

Every token of the text is predicted once, given the tokens of its window before it, but for those that nothing stands
before. What the tokenizer puts at the beginning of a text (the BOS) is never predicted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dsv3c.runtime.artifact.jsonfile import read_bytes
from dsv3c.runtime.engine.session import Ints
from dsv3c.runtime.errors import ParameterInvalid, TextFileInvalid, TextTooShort
from dsv3c.runtime.text.tokenizer import Tokenizer

Bos = Literal["text", "window"]

DEFAULT_CONTEXT = 512
LEAST_TOKENS = 32  # predictions: the error of a mean over fewer says nothing
_LIMIT = 1 << 30
_PROBE = "a"  # any text that has tokens


@dataclass(frozen=True)
class Settings:
    """What is counted.

    context: tokens of a window, None for 512 or as many as the models take. bos: where the tokenizer's BOS stands, if
    it has one: "text" before the text alone, as a text is read; "window" before each window. tokens: how many of the
    text count, from its beginning; None for all.
    """

    context: int | None = None
    bos: Bos = "text"
    tokens: int | None = None


@dataclass(frozen=True)
class Text:
    """A file of text: its name, the sha256 of its bytes, its content."""

    name: str
    sha256: str
    content: str


@dataclass(frozen=True)
class Window:
    """Tokens that are read, i32 [n], and of each the one that follows, i32 [n]; those before row `first` do not count.

    A view into the text's tokens where it can be one.
    """

    tokens: Ints
    targets: Ints
    first: int

    @property
    def counted(self) -> int:
        return self.tokens.size - self.first


def read_text(path: Path) -> Text:
    """Raises TextFileInvalid for a file that is no text, and as `read_bytes`."""
    data = read_bytes(path, _LIMIT)
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextFileInvalid(path=path, reason=f"byte {error.start} is not UTF-8") from error
    if not content.strip():
        raise TextFileInvalid(path=path, reason="it is empty")
    if "\0" in content:
        raise TextFileInvalid(path=path, reason="it has bytes that are 0, as binary files have")
    return Text(path.name, hashlib.sha256(data).hexdigest(), content)


def beginning(tokenizer: Tokenizer) -> Ints:
    """What the tokenizer puts before every text."""
    plain, whole = tokenizer.encode_plain(_PROBE), tokenizer.encode(_PROBE)
    count = next((at for at in range(len(whole)) if whole[at : at + len(plain)] == plain), 0)
    return np.array(whole[:count], np.int32)


def windows(begin: Ints, tokens: Ints, context: int, bos: Bos) -> Iterator[Window]:
    """Windows of at most `context` tokens over what begins a text and the text's tokens. Raises ParameterInvalid."""
    if begin.size >= context:
        reason = f"with the {begin.size} tokens that begin a text nothing else fits"
        raise ParameterInvalid(name="context", value=context, reason=reason)
    if bos == "window" and begin.size:
        size = context + 1 - begin.size
        for start in range(0, tokens.size, size):
            part = np.concatenate([begin, tokens[start : start + size]])
            yield Window(part[:-1], part[1:], begin.size - 1)
        return
    whole = np.concatenate([begin, tokens])
    for start in range(0, whole.size - 1, context):
        part = whole[start : start + context + 1]
        yield Window(part[:-1], part[1:], max(0, begin.size - 1) if start == 0 else 0)


def cut(text: Text, begin: Ints, tokens: Ints, context: int, settings: Settings) -> list[Window]:
    """The windows of a text's tokens. Raises TextTooShort, ParameterInvalid."""
    first = 0 if begin.size else 1  # nothing stands before it
    wanted = tokens if settings.tokens is None else tokens[: settings.tokens + first]
    found = list(windows(begin, wanted, context, settings.bos))
    counted = sum(window.counted for window in found)
    if counted < LEAST_TOKENS:
        raise TextTooShort(name=text.name, tokens=wanted.size, least=LEAST_TOKENS + first)
    return found
