"""A grammar for an answer that has to call tools: their arguments follow the schemas that the request gives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.server.guided import inline_schema

if TYPE_CHECKING:
    from dsv3c.runtime.server.asked import ToolChoice
    from dsv3c.runtime.text.dialects.dialect import Dialect
    from dsv3c.runtime.text.dialects.forms import Tools
    from dsv3c.runtime.text.tokenizer import Tokenizer

_NUMBER = "{number}"  # of a call in the conversation, where the form writes one


def forced_calls(dialect: Dialect, tools: Tools, choice: ToolChoice, tokenizer: Tokenizer) -> str | None:
    """In llguidance's Lark, of all that follows `Dialect.opening`; None for a form whose arguments are no JSON.

    After a call further ones may follow, unless it is one tool or one call that is asked for.
    """
    form = dialect.format.forms[0]
    written = _Written(dialect.format.tags, tokenizer)
    rules, calls = [], []
    for number, tool in enumerate(tools):
        function = tool["function"]
        around = form.around(function["name"])
        if around is None:
            return None
        before, after = (written.lark(text) for text in around)
        rules.append(f"arguments{number}: {inline_schema(_object(function.get('parameters')))}\n")
        rules.append(f"rest{number}: arguments{number} {after}\n")
        calls.append((function["name"], f"({before} rest{number})", f"rest{number}"))
    first = next((rest for name, _, rest in calls if name == choice.name), "call")
    opener = written.lark(form.opening(None))
    further = "" if choice.single or choice.name is not None else f" (/\\n?/ {opener} call)*"
    end = written.lark("".join(dialect.format.section[1:]))
    call = " | ".join(each for _, each, _ in calls)
    return "".join([f"start: {first}{further} {end}\n", f"call: {call}\n", *rules])


def is_strict(tools: Tools, choice: ToolChoice) -> bool:
    """Whether it is an error that schemas cannot be followed."""
    asked = (tool["function"] for tool in tools if choice.name in (None, tool["function"]["name"]))
    return any(function.get("strict") is True for function in asked)


def _object(schema: Any) -> Mapping[str, Any]:
    return {"type": "object", **schema} if isinstance(schema, Mapping) else {"type": "object"}


class _Written:
    """Texts of a form as terminals: tags that are tokens by their ids."""

    def __init__(self, tags: tuple[str, ...], tokenizer: Tokenizer) -> None:
        ids = {tag: tokenizer.token_id(tag) for tag in tags}
        self._ids = {tag: found for tag, found in ids.items() if found is not None}
        longest = sorted((*self._ids, _NUMBER), key=len, reverse=True)
        self._parts = re.compile(f"({'|'.join(map(re.escape, longest))})")

    def lark(self, text: str) -> str:
        return " ".join(self._terminals(text)) or '""'

    def _terminals(self, text: str) -> Iterator[str]:
        for part in self._parts.split(text):
            if part in self._ids:
                yield f"<[{self._ids[part]}]>"
            elif part == _NUMBER:
                yield "/[0-9]{1,9}/"
            elif part:
                yield json.dumps(part)
