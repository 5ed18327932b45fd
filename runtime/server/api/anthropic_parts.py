"""System, messages and tools as Anthropic's API lists them, made into what the server has for all APIs."""

from __future__ import annotations

from typing import Any

from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.server.api.messages import MOST_MESSAGES, MOST_PARTS
from dsv3c.runtime.server.api.tools import MOST_TOOLS
from dsv3c.runtime.server.asked import Tool, ToolChoice
from dsv3c.runtime.server.errors import FeatureMissing
from dsv3c.runtime.server.fields import Body

Message = dict[str, Any]


def system_of(body: Body) -> list[Message]:
    """The system's message, if there is one. Raises FieldInvalid, FieldMissing."""
    text = _text(body, "system")
    return [{"role": "system", "content": text}] if text else []


def messages_of(body: Body) -> list[Message]:
    """Raises FieldInvalid, FieldMissing."""
    found = body.objects("messages", MOST_MESSAGES)
    if found is None:
        raise body.missing("messages", "a list of messages")
    if not found:
        raise body.wrong("messages", "it must have at least one message")
    return [made for each in found for made in _messages(each)]


def tools_of(body: Body) -> tuple[Tool, ...]:
    """Raises FieldInvalid, FieldMissing, FeatureMissing."""
    return tuple(_tool(each) for each in body.objects("tools", MOST_TOOLS) or ())


def tool_choice_of(body: Body, tools: tuple[Tool, ...]) -> ToolChoice:
    """Raises FieldInvalid, FieldMissing."""
    choice = body.inner("tool_choice")
    if choice is None:
        return ToolChoice()
    kind = choice.choice("type", ("auto", "any", "tool", "none"))
    if kind is None:
        raise choice.missing("type", "auto, any, tool or none")
    single = choice.flag("disable_parallel_tool_use") is True
    if kind in ("auto", "none"):
        return ToolChoice("none" if kind == "none" else "auto", single=single)
    if not tools:
        raise choice.wrong("type", "there are no tools")
    if kind == "any":
        return ToolChoice("required", single=single)
    name = choice.required_text("name")
    if not any(tool.name == name for tool in tools):
        raise choice.wrong("name", f"there is no tool {quote(name)}")
    return ToolChoice("required", name, single)


def _tool(body: Body) -> Tool:
    kind = body.text("type")
    if kind not in (None, "custom"):
        raise FeatureMissing(field=body.where("type"), what=quote(kind), reason="this server runs no tools of its own")
    name = body.required_text("name")
    if not name:
        raise body.wrong("name", "it is empty")
    schema = body.inner("input_schema")
    if schema is None:
        raise body.missing("input_schema", "a JSON schema")
    described = {"description": text} if (text := body.text("description")) is not None else {}
    function = {"name": name, **described, "parameters": dict(schema.values)}
    return Tool(name, {"type": "function", "function": function})


def _messages(body: Body) -> list[Message]:
    role = body.choice("role", ("user", "assistant", "system"))
    if role is None:
        raise body.missing("role", "user or assistant")
    if "content" not in body:
        raise body.missing("content", "a text or a list of blocks")
    if not isinstance(body.values["content"], list):
        return [{"role": role, "content": body.required_text("content")}]
    blocks = body.objects("content", MOST_PARTS) or []
    return [_answer(blocks)] if role == "assistant" else _said(role, blocks)


def _answer(blocks: list[Body]) -> Message:
    """Of the model, earlier."""
    texts, thoughts, calls = [], [], []
    for block in blocks:
        kind = _kind(block, ("text", "tool_use", "thinking", "redacted_thinking"))
        if kind == "text":
            texts.append(block.required_text("text"))
        elif kind == "thinking":
            thoughts.append(block.required_text("thinking"))
        elif kind == "tool_use":
            calls.append(_call(block))
    message: Message = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: Body) -> Message:
    given = block.inner("input")
    function = {"name": block.required_text("name"), "arguments": {} if given is None else dict(given.values)}
    return {"id": block.required_text("id"), "type": "function", "function": function}


def _said(role: str, blocks: list[Body]) -> list[Message]:
    """Results of calls are messages of their own, before what else is said."""
    texts, results = [], []
    for block in blocks:
        if _kind(block, ("text", "tool_result")) == "text":
            texts.append(block.required_text("text"))
            continue
        failed = "error: " if block.flag("is_error") else ""
        told = failed + _text(block, "content")
        results.append({"role": "tool", "tool_call_id": block.required_text("tool_use_id"), "content": told})
    return [*results, *([{"role": role, "content": "\n".join(texts)}] if texts or not results else [])]


def _text(body: Body, name: str) -> str:
    """A text, or blocks of text; nothing is the empty one."""
    if not isinstance(body.values.get(name), list):
        return body.text(name) or ""
    blocks = body.objects(name, MOST_PARTS) or []
    return "\n".join(block.required_text("text") for block in blocks if _kind(block, ("text",)))


def _kind(block: Body, known: tuple[str, ...]) -> str:
    kind = block.text("type")
    if kind is None:
        raise block.missing("type", f"one of {', '.join(known)}")
    if kind not in known:
        raise block.wrong("type", f"it is {quote(kind)}, this model takes {', '.join(known)} here")
    return kind
