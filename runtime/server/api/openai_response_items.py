"""Input, output and tools as OpenAI's responses list them, made into what the server has for all APIs."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.server.api.messages import MOST_MESSAGES, MOST_PARTS
from dsv3c.runtime.server.api.tools import MOST_TOOLS, chosen_of
from dsv3c.runtime.server.asked import Tool, ToolChoice
from dsv3c.runtime.server.errors import FeatureMissing
from dsv3c.runtime.server.fields import Body

Message = dict[str, Any]
_ITEMS = ("message", "reasoning", "function_call", "function_call_output")
_TEXTS = ("input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text")


def input_of(body: Body) -> list[Message]:
    """Messages of `input`. Raises FieldInvalid, FieldMissing."""
    if isinstance(body.values.get("input"), str):
        return [{"role": "user", "content": body.values["input"]}]
    items = body.objects("input", MOST_MESSAGES)
    if items is None:
        raise body.missing("input", "a text or a list of items")
    messages: list[Message] = []
    for item in items:
        _add(messages, _item(item))
    return messages


def output_messages(output: Many[Mapping[str, Any]]) -> list[Message]:
    """What the model said, for the conversation that goes on."""
    messages: list[Message] = []
    for item in output:
        _add(messages, _item(Body(item)))
    return messages


def tools_of(body: Body) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Raises FieldInvalid, FieldMissing, FeatureMissing."""
    return chosen_of(body, tuple(_tool(each) for each in body.objects("tools", MOST_TOOLS) or ()))


def _tool(body: Body) -> Tool:
    kind = body.text("type")
    if kind != "function":
        told = quote(kind) if kind else "a tool without a type"
        raise FeatureMissing(field=body.where("type"), what=told, reason="this server runs no tools of its own")
    name = body.required_text("name")
    if not name:
        raise body.wrong("name", "it is empty")
    parameters = body.inner("parameters")
    described = {"description": text} if (text := body.text("description")) is not None else {}
    schema = {"type": "object", "properties": {}} if parameters is None else dict(parameters.values)
    return Tool(name, {"type": "function", "function": {"name": name, **described, "parameters": schema}})


def _item(body: Body) -> Message:
    kind = body.choice("type", _ITEMS) or "message"
    if kind == "message":
        role = body.choice("role", ("user", "assistant", "system", "developer"))
        if role is None:
            raise body.missing("role", "user, assistant, system or developer")
        return {"role": "system" if role == "developer" else role, "content": _text(body, "content")}
    if kind == "reasoning":
        told = _text(body, "content") if body.values.get("content") else _text(body, "summary")
        return {"role": "assistant", "content": "", "reasoning_content": told}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": body.required_text("call_id"), "content": _text(body, "output")}
    function = {"name": body.required_text("name"), "arguments": body.required_text("arguments")}
    call = {"id": body.required_text("call_id"), "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _add(messages: list[Message], message: Message) -> None:
    """Thoughts, text and calls are items of their own, and one message of the model."""
    last = messages[-1] if messages else {}
    if message["role"] != "assistant" or last.get("role") != "assistant":
        messages.append(message)
        return
    last["content"] = "\n".join(text for text in (last["content"], message["content"]) if text)
    if "reasoning_content" in message:
        thoughts = (last.get("reasoning_content", ""), message["reasoning_content"])
        last["reasoning_content"] = "\n".join(text for text in thoughts if text)
    if "tool_calls" in message:
        last["tool_calls"] = [*last.get("tool_calls", ()), *message["tool_calls"]]


def _text(body: Body, name: str) -> str:
    """A text, or parts that are texts."""
    if name not in body:
        raise body.missing(name, "a text or a list of parts")
    if not isinstance(body.values[name], list):
        return body.required_text(name)
    return "\n".join(_part(part) for part in body.objects(name, MOST_PARTS) or [])


def _part(part: Body) -> str:
    kind = part.text("type")
    if kind not in _TEXTS:
        told = "a part without a type" if kind is None else quote(kind)
        raise part.wrong("type", f"it is {told}, this model takes texts alone")
    return part.required_text("refusal" if kind == "refusal" else "text")
