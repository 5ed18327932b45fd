"""Messages of a chat, checked, as chat templates take them."""

from __future__ import annotations

from typing import Any

from dsv3c.runtime.server.asked import Messages
from dsv3c.runtime.server.fields import Body

MOST_MESSAGES, MOST_PARTS, MOST_CALLS = 10_000, 1_000, 128
_ROLES = ("system", "developer", "user", "assistant", "tool")


def messages_of(body: Body, name: str = "messages") -> Messages:
    """Raises FieldMissing, FieldInvalid."""
    found = body.objects(name, MOST_MESSAGES)
    if found is None:
        raise body.missing(name, "a list of messages")
    if not found:
        raise body.wrong(name, "it must have at least one message")
    return tuple(_message(each) for each in found)


def _message(body: Body) -> dict[str, Any]:
    role = body.choice("role", _ROLES)
    if role is None:
        raise body.missing("role", f"one of {', '.join(_ROLES)}")
    calls = body.objects("tool_calls", MOST_CALLS) if role == "assistant" else None
    message: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": _content(body, bool(calls)),
    }
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    optional = {"name": role != "assistant", "reasoning_content": role == "assistant", "tool_call_id": role == "tool"}
    for name, has in optional.items():
        value = body.text(name) if has else None
        if value is not None:
            message[name] = value
    return message


def _content(body: Body, may_lack: bool) -> str:
    """A text, or parts that are texts."""
    value = body.values.get("content")
    if value is None:
        if may_lack or body.values.get("role") == "assistant":
            return ""
        raise body.missing("content", "a text")
    if not isinstance(value, list):
        return body.required_text("content")
    return "\n".join(_part(part) for part in body.objects("content", MOST_PARTS) or [])


def _part(part: Body) -> str:
    kind = part.text("type")
    if kind not in ("text", "input_text", "output_text", "refusal"):
        raise part.wrong("type", "this model takes parts of the type text alone")
    return part.required_text("refusal" if kind == "refusal" else "text")


def _call(call: Body) -> dict[str, Any]:
    function = call.inner("function")
    if function is None:
        raise call.missing("function", "an object with name and arguments")
    arguments = function.text("arguments")
    named = {"name": function.required_text("name"), "arguments": "{}" if arguments is None else arguments}
    return {"id": call.text("id") or "", "type": "function", "function": named}
