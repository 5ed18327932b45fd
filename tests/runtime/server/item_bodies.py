"""Bodies that nobody should send, for the APIs whose messages have blocks or items."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.runtime.server.bodies import Values, anything, bodies, lengths, numbers, scalars, schemas, texts


def kinds(*names: str, **fields: Values) -> Values:
    """Objects of these types with any of these fields."""
    return st.fixed_dictionaries({"type": st.sampled_from([*names, "image", None])}, optional=fields)


def lists(values: Values) -> Values:
    return st.lists(values | anything, max_size=2) | scalars


_text_blocks = lists(kinds("text", text=texts | scalars))
_blocks = lists(
    kinds(
        "text", "tool_use", "tool_result", "thinking", "redacted_thinking",
        text=texts, id=texts, name=texts, input=anything, tool_use_id=texts, content=_text_blocks, is_error=scalars,
        thinking=texts, signature=scalars,
    )
)  # fmt: skip
_messages = lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "user", "assistant", "system"]), "content": _blocks})
)
_sampling: dict[str, Values] = {
    "model": st.one_of(st.just("tiny"), scalars),
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), numbers | scalars),
    "regex": texts | scalars,
    "stream": st.booleans() | scalars,
    "metadata": anything,
}
_conversation: dict[str, Values] = {
    "system": texts | _text_blocks,
    "tools": lists(st.fixed_dictionaries({"name": texts, "input_schema": schemas}, optional={"type": scalars})),
    "tool_choice": kinds("auto", "any", "tool", "none", name=texts) | scalars,
    "thinking": kinds("enabled", "adaptive", "disabled", budget_tokens=numbers) | scalars,
}
ANTHROPIC = bodies(
    {"messages": _messages, "max_tokens": lengths},
    {
        **_sampling,
        **_conversation,
        "stop_sequences": st.lists(texts, max_size=2) | scalars,
        "output_config": st.fixed_dictionaries({"format": kinds("json_schema", schema=schemas)}) | scalars,
    },
)
COUNTED = bodies({"messages": _messages}, _conversation)

_parts = lists(kinds("input_text", "output_text", "refusal", text=texts, refusal=texts))
_items = lists(
    kinds(
        "message", "reasoning", "function_call", "function_call_output",
        role=st.sampled_from(["user", "assistant", "developer", "x"]), content=texts | _parts, summary=_parts,
        call_id=texts, name=texts, arguments=texts | st.just("{}"), output=texts | _parts,
    )
)  # fmt: skip
_functions = lists(kinds("function", name=texts, parameters=schemas, description=scalars, strict=scalars))
RESPONSES = bodies(
    {"input": texts | _items, "max_output_tokens": lengths},
    {
        **_sampling,
        "instructions": texts | scalars,
        "tools": _functions,
        "tool_choice": kinds("function", "allowed_tools", name=texts, mode=scalars, tools=_functions)
        | st.sampled_from(["auto", "none", "required", "x"]),
        "text": st.fixed_dictionaries({"format": kinds("text", "json_object", "json_schema", schema=schemas)})
        | scalars,
        "reasoning": st.fixed_dictionaries({"effort": scalars}) | scalars,
        "previous_response_id": scalars,
        "include": lists(st.just("message.output_text.logprobs")),
        "top_logprobs": st.integers(-1, 25) | scalars,
        **dict.fromkeys(("store", "parallel_tool_calls", "background", "truncation"), scalars),
    },
)
