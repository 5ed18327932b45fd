"""From a file of text to the sequences of tokens that a model is calibrated on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import UnreadableFileError
from dsv3c.compiler.core.ops.table import Array
from dsv3c.compiler.errors import (
    BinaryCalibrationError,
    CalibrationLineError,
    EmptyCalibrationError,
    ShortCalibrationError,
)
from dsv3c.compiler.options import LEAST_CALIBRATION_TOKENS
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.text.tokenizer import Tokenizer

DEFAULT = Path(__file__).with_name("default.txt")
LENGTH = 512  # tokens of a sequence
_MOST_BYTES = 64  # of text a token: more of a file is not read
_PIECE = 1 << 18  # characters that are encoded at once


@dataclass(frozen=True)
class CalibrationText:
    """sequences: token ids, i32, each of LENGTH at most and 2 at least. name: of the file; empty: the text of ours.
    sha256: of its text, as far as it was read."""

    sequences: tuple[Array, ...]
    name: str
    sha256: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def read(path: Path | None, tokenizer: Tokenizer, limit: int) -> CalibrationText:
    """The text of a file, or of ours where there is none, as at most `limit` tokens.

    A file *.jsonl has a JSON object a line: {"text": "…"}, or {"messages": […]} that go through the chat template; any
    other is one text. Raises CheckpointError for a file that cannot be read, and CalibrationError subclasses.
    """
    file = path or DEFAULT
    text = _text(file, limit)
    documents = _lines(text, file, tokenizer) if file.suffix == ".jsonl" else _pieces(text, tokenizer)
    sequences: list[Array] = []
    left = limit
    for ids in documents:
        kept = ids[:left]
        sequences += (np.array(kept[start : start + LENGTH], np.int32) for start in range(0, len(kept), LENGTH))
        left -= len(kept)
        if not left:
            break
    whole = tuple(sequence for sequence in sequences if len(sequence) > 1)
    found = sum(map(len, whole))
    if found < LEAST_CALIBRATION_TOKENS:
        raise ShortCalibrationError(path=file, found=found, least=LEAST_CALIBRATION_TOKENS)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return CalibrationText(whole, path.name if path else "", digest)


def _text(path: Path, limit: int) -> str:
    most = limit * _MOST_BYTES
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UnreadableFileError(path=path, reason=error.strerror) from error
    if len(data) > most:
        data = data[: data.rfind(b"\n", 0, most) + 1] or data[:most]
    zero = data.find(0)
    if zero >= 0:
        raise BinaryCalibrationError(path=path, at=zero)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < most - 4:
            raise BinaryCalibrationError(path=path, at=error.start) from error
        text = data[: error.start].decode("utf-8-sig")  # the last character was cut
    if not text.strip():
        raise EmptyCalibrationError(path=path)
    return text


def _pieces(text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of one text, of which a long one is encoded in pieces that end with a line where they can."""
    start = 0
    while start < len(text):
        end = start + _PIECE
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        piece = text[start:end]
        yield tokenizer.encode_plain(piece) if start else tokenizer.encode(piece)
        start = end


def _lines(text: str, path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _document(line, number, path, tokenizer)


def _document(line: str, number: int, path: Path, tokenizer: Tokenizer) -> list[int]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CalibrationLineError(path=path, number=number, reason=f"it is no JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        return tokenizer.encode(content["text"])
    if isinstance(content, dict) and isinstance(content.get("messages"), list):
        try:
            return tokenizer.encode_chat(content["messages"], add_generation_prompt=False)
        except RuntimeFault as error:
            reason = str(error).partition("\n")[0]
            raise CalibrationLineError(path=path, number=number, reason=reason) from error
    raise CalibrationLineError(path=path, number=number, reason='it has neither a "text" nor "messages"')
