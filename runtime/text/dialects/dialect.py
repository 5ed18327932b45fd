"""What a model's tokenizer and chat template say of how it thinks and calls tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from functools import cached_property
from typing import Any

from dsv3c.runtime.text.dialects.formats import FORMATS, Format
from dsv3c.runtime.text.dialects.forms import Tools
from dsv3c.runtime.text.dialects.messages import Message, Style, described, for_template, style_of, with_system
from dsv3c.runtime.text.dialects.reader import Reader
from dsv3c.runtime.text.thoughts import CLOSE, OPEN, hidden_tags
from dsv3c.runtime.text.tokenizer import Tokenizer


class Dialect:
    """How one model is told of tools and of former calls, and how its answers are read. Threads may share it."""

    def __init__(self, form: Format, tokenizer: Tokenizer) -> None:
        self.format = form
        self._tags = hidden_tags(tokenizer, (OPEN, CLOSE, *form.tags))
        self._tokenizer = tokenizer

    def decode(self, ids: Many[int]) -> str:
        """The text of an answer for a reader: with tags that are special tokens, which a text leaves out."""
        return self._tokenizer.decode(ids, self._tags)

    def reader(self, opened: bool, tools: Tools = ()) -> Reader:
        """Of one answer. opened: whether it begins within thoughts (`thoughts.opened_by`). Without tools nothing in it
        is a call."""
        return Reader(self.format, opened, tools)

    def one_call(self, opened: bool, tools: Tools, opening: str) -> Callable[[], Callable[[str], bool]]:
        """Makes what is told the text of one answer, and says when a call in it is over. opening: its beginning that
        stands in the prompt."""

        def made() -> Callable[[str], bool]:
            reader = self.reader(opened, tools)
            reader.push(opening)

            def has_called(text: str) -> bool:
                reader.push(text)
                return reader.has_called

            return has_called

        return made

    def prompt(self, messages: Many[Mapping[str, Any]], tools: Tools = ()) -> tuple[list[Message], dict[str, Any]]:
        """Messages and variables for the chat template. Raises MessagesInvalid, and what rendering one does."""
        calls = any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        style = self._style if calls else None
        thoughts = self._tokenizer.template_mentions("reasoning_content")
        made = for_template(messages, self.format, style, thoughts)
        if not tools:
            return made, {}
        if self._tokenizer.template_mentions("tools"):
            return made, {"tools": list(tools)}
        return with_system(made, described(tools, self.format)), {}

    def opening(self, opened: bool, name: str | None = None) -> str:
        """What stands at the end of the prompt, and is read as the answer's beginning, of a model that has to call this
        tool, or any."""
        return (f"\n{CLOSE}\n\n" if opened else "") + self.format.opening(name)

    @cached_property
    def _style(self) -> Style | None:
        return style_of(self._tokenizer.render_chat)


def dialect_of(tokenizer: Tokenizer) -> Dialect:
    """By its chat template, else by its special tokens."""
    for row in FORMATS:
        if row.signs and all(tokenizer.template_mentions(sign) for sign in row.signs):
            return Dialect(row, tokenizer)
    known = (row for row in FORMATS if any(tokenizer.token_id(token) is not None for token in row.tokens))
    return Dialect(next(known, FORMATS[-1]), tokenizer)
