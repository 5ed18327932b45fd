"""Conversations that commands keep in files: their pages, and what was said."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.errors import RequestFault

if TYPE_CHECKING:
    from dsv3c.runtime.engine.generation import Generation
    from dsv3c.runtime.model import Model

CHAT, TEXT = "chat", "text"
Messages = list[dict[str, Any]]


class SessionOther(RequestFault):
    message = "{path} holds a {found}, not a {wanted}"
    hint = (
        "chats go on with `dsv3c generate --chat` and `dsv3c chat`, texts without; or give another path to begin anew"
    )


def save_chat(model: Model, path: Path, messages: Many[Mapping[str, Any]], tokens: Many[int]) -> None:
    """tokens: of the chat as the model has read and written it. Raises SaveRefused."""
    model.save_session(path, list(tokens), {"kind": CHAT, "messages": list(messages)})


def load_chat(model: Model, path: Path) -> Messages:
    """The messages; their pages are in the prefix cache. Raises SessionOther, and as `Model.restore_session`."""
    _, extra = model.restore_session(path)
    _require(path, extra, CHAT)
    return list(extra["messages"])


def are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) and "role" in each for each in value)


class TextSession:
    """A file that a prompt goes on with, and where it goes with its answer. What is not there yet begins anew."""

    def __init__(self, model: Model, path: Path, before: list[int], messages: Messages | None) -> None:
        self._model = model
        self._path = path
        self._before = before
        self._messages = messages
        self._tokens = before

    @staticmethod
    def opened(model: Model, path: Path, chat: bool) -> TextSession:
        """Raises SaveRefused for a path where nothing can be saved, and as `load_chat`."""
        from dsv3c.runtime.engine.saved import require_place

        if not path.exists():
            require_place(path)
            return TextSession(model, path, [], [] if chat else None)
        if chat:
            return TextSession(model, path, [], load_chat(model, path))
        _, extra = model.restore_session(path)
        _require(path, extra, TEXT)
        require_place(path)
        return TextSession(model, path, list(extra["tokens"]), None)

    def prompt(self, given: Any, add_bos: bool | None) -> list[int]:
        """The whole conversation with a prompt behind it, as token ids."""
        if self._messages is not None:
            self._messages += given
            self._tokens = self._model.encode(self._messages)
        elif self._before:
            added = self._model.encode(given, False) if isinstance(given, str) else list(given)
            self._tokens = self._before + added
        else:
            self._tokens = self._model.encode(given, add_bos)
        return self._tokens

    def save(self, answer: Generation) -> None:
        tokens = [*self._tokens, *answer.token_ids]
        if self._messages is None:
            self._model.save_session(self._path, tokens, {"kind": TEXT, "tokens": tokens})
            return
        messages = [*self._messages, {"role": "assistant", "content": answer.text}]
        save_chat(self._model, self._path, messages, tokens)


def _require(path: Path, extra: Mapping[str, Any], wanted: str) -> None:
    found = next((kind for kind, check in _KINDS.items() if extra.get("kind") == kind and check(extra)), None)
    if found != wanted:
        raise SessionOther(path=path, found=found or "conversation of another program", wanted=wanted)


def _has_messages(extra: Mapping[str, Any]) -> bool:
    return are_messages(extra.get("messages"))


def _has_tokens(extra: Mapping[str, Any]) -> bool:
    tokens = extra.get("tokens")
    return isinstance(tokens, list) and all(type(token) is int for token in tokens)


_KINDS = {CHAT: _has_messages, TEXT: _has_tokens}
