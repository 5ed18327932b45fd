"""Tools that a model may call, as OpenAI's APIs list and choose them."""

from __future__ import annotations

from dataclasses import replace

from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.server.asked import Tool, ToolChoice
from dsv3c.runtime.server.fields import Body

MOST_TOOLS = 1_000


def tools_of(body: Body) -> tuple[Tool, ...]:
    """Raises FieldInvalid, FieldMissing."""
    return tuple(_tool(each) for each in body.objects("tools", MOST_TOOLS) or ())


def chosen_of(body: Body, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Those that may be called, and what is said of calling them. Raises FieldInvalid, FieldMissing."""
    choice = body.inner("tool_choice") if isinstance(body.values.get("tool_choice"), dict) else None
    if choice is not None and choice.choice("type", ("function", "allowed_tools")) == "allowed_tools":
        tools, chosen = _allowed(choice.inner("allowed_tools") or choice, tools)  # chats have it one level deeper
    else:
        chosen = _choice_of(body, tools)
    return tools, replace(chosen, single=body.flag("parallel_tool_calls") is False)


def _allowed(body: Body, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    listed = body.objects("tools", MOST_TOOLS) or ()
    names = [(each.inner("function") or each).required_text("name") for each in listed]
    kept = tuple(tool for tool in tools if tool.name in names)
    required = body.choice("mode", ("auto", "required")) == "required"
    if required and not kept:
        raise body.wrong("tools", "none of them is among the tools")
    return kept, ToolChoice("required" if required else "auto")


def _choice_of(body: Body, tools: tuple[Tool, ...]) -> ToolChoice:
    value = body.values.get("tool_choice")
    if value is None:
        return ToolChoice()
    if isinstance(value, dict):
        chosen = body.inner("tool_choice")
        assert chosen is not None
        function = chosen.inner("function")
        return _named(body, tools, chosen.required_text("name") if function is None else function.required_text("name"))
    kind = body.choice("tool_choice", ("auto", "none", "required"))
    if kind == "required" and not tools:
        raise body.wrong("tool_choice", "there are no tools")
    return ToolChoice("required" if kind == "required" else "none" if kind == "none" else "auto")


def _named(body: Body, tools: tuple[Tool, ...], name: str) -> ToolChoice:
    if not any(tool.name == name for tool in tools):
        raise body.wrong("tool_choice", f"there is no tool {quote(name)}")
    return ToolChoice("required", name)


def _tool(body: Body) -> Tool:
    kind = body.text("type")
    if kind not in (None, "function"):
        raise body.wrong("type", f"it is {quote(kind)}, tools are functions here")
    function = body.inner("function")
    if function is None:
        raise body.missing("function", "an object with a name")
    name = function.required_text("name")
    if not name:
        raise function.wrong("name", "it is empty")
    function.text("description")
    function.inner("parameters")
    return Tool(name, {"type": "function", "function": dict(function.values)})
