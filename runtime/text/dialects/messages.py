"""Messages as clients give them, made into what a chat template takes.

Templates differ in whether arguments are a text or a mapping, and in whether a message with calls may say something
besides. What one takes is found by rendering a conversation of which every part has to be seen again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Many
from typing import Any, Literal, NamedTuple

from dsv3c.runtime.errors import MessagesInvalid, TemplateFailed
from dsv3c.runtime.text.dialects.formats import Format
from dsv3c.runtime.text.dialects.forms import Tools, dumped

Message = dict[str, Any]
_ROLES = {"developer": "system", "function": "tool"}  # names that templates do not know
_TEXTS = ("text", "input_text", "output_text")


class Style(NamedTuple):
    """How a template takes calls. alone: a message with calls has None for its content."""

    arguments: Literal["text", "mapping"]
    alone: bool


def style_of(render: Callable[[Many[Message]], str]) -> Style | None:
    """None: it takes no calls, or none of their results."""
    for alone in (False, True):
        for arguments in ("text", "mapping"):
            style = Style(arguments, alone)
            if _is_taken(render, style):
                return style
    return None


def for_template(messages: Many[Mapping[str, Any]], form: Format, style: Style | None, thoughts: bool) -> list[Message]:
    """thoughts: whether the template knows of `reasoning_content`. Raises MessagesInvalid."""
    writer = _Writer(form, style)
    for index, message in enumerate(messages):
        copy = {**message, "role": _ROLES.get(str(message.get("role")), message.get("role"))}
        copy["content"] = _joined(copy.get("content"), index)
        if not thoughts:
            copy.pop("reasoning_content", None)
        writer.add(copy, index)
    return writer.messages


def described(tools: Tools, form: Format) -> str:
    """Tools as a text for the system's message, for a template that has no place for them."""
    parts = ["## Tools", "You can call these tools:"]
    for tool in tools:
        function = tool["function"]
        parts.append(f"### {function['name']}\nDescription: {function.get('description') or 'none'}")
        parts.append(f"Parameters: {dumped(function.get('parameters') or {})}")
    example = _written(form, [form.forms[0].write("NAME", {"PARAMETER": "VALUE"}, 0)])
    rule = "To call one or several, end your answer with calls of exactly this form, parameters as a JSON object:"
    return "\n\n".join([*parts, f"{rule}\n{example}"])


def with_system(messages: Many[Message], text: str) -> list[Message]:
    """The messages, with a text added to the system's first."""
    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": text}, *messages]
    told = "\n\n".join(part for part in (first.get("content"), text) if part)
    return [{**first, "content": told}, *messages[1:]]


class _Writer:
    def __init__(self, form: Format, style: Style | None) -> None:
        self.messages: list[Message] = []
        self._format, self._style = form, style
        self._ids: dict[Any, str] = {}
        self._results: Message | None = None  # of calls, as somebody says them whom the template knows
        self._count = 0

    def add(self, message: Message, index: int) -> None:
        if message["role"] == "tool":
            self._add_result(message)
        elif message["role"] == "assistant" and message.get("tool_calls"):
            self._add_calls(message, index)
        else:
            message.pop("tool_calls", None)  # some templates look whether it is there
            self.messages.append(message)

    def _add_calls(self, message: Message, index: int) -> None:
        calls, texts = [], []
        for number, call in enumerate(message["tool_calls"]):
            name, arguments = _call(call, f"message {index}: tool call {number}")
            given = call.get("id")
            made = self._format.call_id(name, self._count) if self._format.call_id else str(given)
            self._ids[given] = made
            texts.append(self._format.forms[0].write(name, arguments, self._count))
            taken = dumped(arguments) if self._style and self._style.arguments == "text" else arguments
            calls.append({"id": made, "type": "function", "function": {"name": name, "arguments": taken}})
            self._count += 1
        if self._style is None:
            message.pop("tool_calls")
            self.messages.append({**message, "content": message["content"] + _written(self._format, texts)})
            return
        if self._style.alone and message["content"]:
            self.messages.append({"role": "assistant", "content": message["content"]})
        content = None if self._style.alone else message["content"]
        self.messages.append({**message, "content": content, "tool_calls": calls})

    def _add_result(self, message: Message) -> None:
        if self._style is not None:
            given = message.get("tool_call_id")
            self.messages.append({**message, "tool_call_id": self._ids.get(given, given)})
            return
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        if self._results is not None and self._results is self.messages[-1]:  # roles may have to take turns
            self._results["content"] += f"\n{text}"
            return
        self._results = {"role": "user", "content": text}
        self.messages.append(self._results)


def _written(form: Format, calls: Many[str]) -> str:
    opener, closer = form.section or ("", "")
    return opener + ("" if form.section else "\n").join(calls) + closer


def _call(call: Any, where: str) -> tuple[str, dict[str, Any]]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise MessagesInvalid(reason=f"{where} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = ""  # told below
    if not isinstance(arguments, Mapping | None):
        raise MessagesInvalid(reason=f"{where}: its arguments are no JSON object")
    return function["name"], dict(arguments or {})


def _joined(content: Any, index: int) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list | tuple) else [content]
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXTS or not isinstance(part.get("text"), str):
            raise MessagesInvalid(reason=f"message {index} has content that is no text ({kind or type(part).__name__})")
        texts.append(part["text"])
    return "".join(texts)


def _is_taken(render: Callable[[Many[Message]], str], style: Style) -> bool:
    arguments = {"probed": "value"}
    given = dumped(arguments) if style.arguments == "text" else arguments
    call: Message = {
        "id": "functions.probe_tool:0",
        "type": "function",
        "function": {"name": "probe_tool", "arguments": given},
    }
    said = None if style.alone else "probe_text"
    asked: list[Message] = [
        {"role": "user", "content": "probe_question"},
        {"role": "assistant", "content": said, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "probe_result"},
    ]
    try:
        text = render(asked)
    except TemplateFailed:
        return False
    shown = ("probe_tool", "probe_result", "probed", "value", *([] if style.alone else ["probe_text"]))
    quoted = ('\\"probed', "'probed")  # JSON of JSON, or a mapping as Python prints it
    return all(word in text for word in shown) and not any(word in text for word in quoted)
