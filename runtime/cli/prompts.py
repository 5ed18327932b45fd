"""What a person asks of a model: a prompt, many of them, a file of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsv3c.runtime.errors import Dsv3cError, RequestFault, RuntimeFault

PROMPT_LIMIT = 64 << 20  # bytes
FILE_LIMIT = 512 << 20
KINDS = ("prompt", "messages", "ids")
STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_LINE_VALUES = 2_000_000

Prompt = str | list[int] | list[dict[str, Any]]


class InputUnreadable(RuntimeFault):
    message = "cannot read the prompt from stdin: {reason}"
    hint = "give it with -p, or as UTF-8 text: dsv3c generate OUT -p - < prompt.txt"


class PromptsUnreadable(RuntimeFault):
    message = "cannot read prompts from {path}: {reason}"
    hint = "give a file of JSON lines in UTF-8, or - for stdin"


class PromptsInvalid(RequestFault):
    message = "{path}, line {line}: {reason}"
    hint = (
        'a line is one JSON object with "prompt", "messages" or "ids", and parameters by name: '
        '{{"prompt": "Once upon a time", "temperature": 0.8, "id": 1}}'
    )


@dataclass(frozen=True)
class Asked:
    """One prompt. how: parameters of its own. label: what names its answer, where `labelled`. line: of the file."""

    prompt: Prompt
    how: Mapping[str, Any] = field(default_factory=dict)
    add_bos: bool | None = None
    labelled: bool = False
    label: Any = None
    line: int | None = None

    @property
    def most_tokens(self) -> int:
        """More than this the prompt has hardly: a token is a byte of text at least."""
        if not isinstance(self.prompt, str) and self.prompt and isinstance(self.prompt[0], int):
            return len(self.prompt)
        return len(str(self.prompt).encode("utf-8", "surrogatepass")) + 16


def as_chat(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


def read_prompt() -> str:
    """The text on stdin, in UTF-8 whatever the locale; a byte order mark is no part of it. Raises InputUnreadable."""
    data = _stdin(PROMPT_LIMIT, lambda reason: InputUnreadable(reason=reason))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(reason=f"byte {error.start} is not UTF-8") from error


def read_prompts(path: str, chat: bool, add_bos: bool | None) -> list[Asked]:
    """The prompts of a file of JSON lines, all of them looked at. Raises PromptsUnreadable, PromptsInvalid."""
    found = []
    for line, data in _lines(path):
        try:
            found.append(_asked(data, line, chat, add_bos))
        except ValueError as error:
            raise PromptsInvalid(path=_name(path), line=line, reason=error) from error
    if not found:
        raise PromptsUnreadable(path=_name(path), reason="there is no line in it")
    return found


def require_parameters(path: str, asked: Many[Asked], check: Callable[[Mapping[str, Any]], object]) -> None:
    """check: of the parameters of a prompt; raises what it finds wrong. Raises PromptsInvalid."""
    for each in asked:
        try:
            check(each.how)
        except Dsv3cError as error:
            reason = str(error).partition("\n")[0]
            raise PromptsInvalid(path=_name(path), line=each.line, reason=reason) from error


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    def unreadable(reason: str) -> Exception:
        return PromptsUnreadable(path=_name(path), reason=reason)

    data = _stdin(FILE_LIMIT, unreadable) if path == STDIN else _file(Path(path), unreadable)
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _file(path: Path, unreadable: Callable[[str], Exception]) -> bytes:
    try:
        with path.open("rb") as file:  # also a pipe: <(make-prompts)
            data = file.read(FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise unreadable(getattr(error, "strerror", None) or str(error)) from error
    if len(data) > FILE_LIMIT:
        raise unreadable(f"it has more than {FILE_LIMIT} bytes")
    return data


def _stdin(limit: int, unreadable: Callable[[str], Exception]) -> bytes:
    if sys.stdin is None:
        raise unreadable("it is closed")
    try:
        data: bytes = sys.stdin.buffer.read(limit + 1)
    except OSError as error:
        raise unreadable(error.strerror or str(error)) from error
    if len(data) > limit:
        raise unreadable(f"it has more than {limit} bytes")
    return data


def _asked(data: bytes, line: int, chat: bool, add_bos: bool | None) -> Asked:
    """Raises ValueError."""
    from dsv3c.runtime.artifact import strict_json

    try:
        said = strict_json.parse(data, _LINE_VALUES)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(said, dict):
        raise ValueError("it is not a JSON object")
    kinds = [kind for kind in KINDS if kind in said]
    if len(kinds) != 1:
        given = f"it has {' and '.join(kinds)}" if kinds else "it has no prompt"
        raise ValueError(f"{given}; give one of {', '.join(KINDS)}")
    how = {name: value for name, value in said.items() if name not in (*KINDS, "id")}
    prompt = _CHECKS[kinds[0]](said[kinds[0]])
    plain = kinds[0] == "prompt"
    if plain and chat:
        prompt = as_chat(str(prompt))
    return Asked(prompt, how, add_bos if plain and not chat else None, "id" in said, said.get("id"), line)


def _text(value: Any) -> Prompt:
    if not isinstance(value, str):
        raise ValueError("prompt must be a text")
    return value


def _messages(value: Any) -> Prompt:
    messages = value if isinstance(value, list) else []
    if not messages or not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages):
        raise ValueError("messages must be a list of objects, each with a role and a content")
    return messages


def _ids(value: Any) -> Prompt:
    ids = value if isinstance(value, list) else []
    if not ids or not all(type(token) is int for token in ids):
        raise ValueError("ids must be a list of token ids")
    return ids


_CHECKS: Mapping[str, Callable[[Any], Prompt]] = {"prompt": _text, "messages": _messages, "ids": _ids}


def _name(path: str) -> str:
    return "stdin" if path == STDIN else path
