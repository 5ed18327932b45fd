"""/v1/messages, by Anthropic's own client over a socket."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import pytest

from tests.runtime.server.conftest import Running

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "name": "get_weather",
    "description": "Of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# What a model of random weights would hardly say by itself: a regular expression leaves it no other words.
CALL = r'I look\. <tool_call>\{"name": "get_weather", "arguments": \{"city": "Oslo"\}\}</tool_call>'


@pytest.fixture(scope="module")
def client(served: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, regex: str | None = None, **how: Any) -> anthropic.types.Message:
    given = {"model": "tiny", "messages": HELLO, "max_tokens": 120, **how}
    found: anthropic.types.Message = client.messages.create(**given, extra_body={"temperature": 0, "regex": regex})
    return found


def test_an_answer_is_whole(client: anthropic.Anthropic) -> None:
    found = ask(client, max_tokens=8)
    assert (found.type, found.role, found.model) == ("message", "assistant", "tiny") and found.id.startswith("msg_")
    assert [block.type for block in found.content] == ["text"]
    assert found.stop_reason == "max_tokens" and found.usage.output_tokens == 8
    assert found.usage.input_tokens + found.usage.cache_read_input_tokens == 14


def test_why_an_answer_ends(client: anthropic.Anthropic) -> None:
    assert ask(client, "Hi").stop_reason == "end_turn"
    found = ask(client, "One, two, three", stop_sequences=["x", " two"])
    assert (found.stop_reason, found.stop_sequence, found.content[0].text) == ("stop_sequence", " two", "One,")


def test_a_stream_says_the_same(client: anthropic.Anthropic) -> None:
    whole = ask(client, "Hi [a-z]{9}")
    how: Any = {"model": "tiny", "max_tokens": 120, "messages": HELLO}
    events = list(client.messages.create(**how, stream=True, extra_body={"temperature": 0, "regex": "Hi [a-z]{9}"}))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    texts = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(texts) == whole.content[0].text and len(texts) > 5
    assert events[-2].delta.stop_reason == whole.stop_reason
    assert events[-2].usage.output_tokens == whole.usage.output_tokens
    assert events[0].message.usage.input_tokens == 14 and events[0].message.content == []


def test_the_names_of_events_and_a_ping(served: Running) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 3, "stream": True}
    lines = httpx2.post(f"{served.url}/v1/messages", json=body).text.split("\n\n")
    events = [part.split("\n")[0].removeprefix("event: ") for part in lines if part.startswith("event")]
    assert events[:2] == ["message_start", "ping"] and events[-1] == "message_stop"


def test_a_call_of_a_tool(client: anthropic.Anthropic) -> None:
    found = ask(client, CALL, tools=[WEATHER])
    text, call = found.content
    assert (text.type, text.text) == ("text", "I look.")
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Oslo"})
    assert found.stop_reason == "tool_use"


def test_a_call_is_streamed(client: anthropic.Anthropic) -> None:
    how: Any = {"model": "tiny", "max_tokens": 120, "messages": HELLO, "tools": [WEATHER]}
    with client.messages.stream(**how, extra_body={"regex": CALL}) as stream:
        events = list(stream)
        found = stream.get_final_message()
    parts = [event.partial_json for event in events if event.type == "input_json"]
    assert "".join(parts) == '{"city": "Oslo"}' and len(parts) > 3
    assert [block.type for block in found.content] == ["text", "tool_use"]
    assert found.content[1].input == {"city": "Oslo"} and found.stop_reason == "tool_use"


def test_which_tool_has_to_be_called(client: anthropic.Anthropic) -> None:
    other = {**WEATHER, "name": "other"}
    for choice in ({"type": "any"}, {"type": "tool", "name": "other"}):
        rest = r'other", "arguments": \{\}\}</tool_call>' if choice["type"] == "any" else r"\{\}\}</tool_call>"
        found = ask(client, rest, tools=[WEATHER, other], tool_choice=choice)
        assert [(block.type, block.name, block.input) for block in found.content] == [("tool_use", "other", {})]
    found = ask(client, CALL, tools=[WEATHER], tool_choice={"type": "none"})
    assert [block.type for block in found.content] == ["text"] and "<tool_call>" in found.content[0].text


def test_only_one_call_where_parallel_ones_are_not_wanted(client: anthropic.Anthropic) -> None:
    call = r'<tool_call>\{"name": "a", "arguments": \{\}\}</tool_call>'
    for wanted, count in ((False, 2), (True, 1)):
        choice: Any = {"type": "auto", "disable_parallel_tool_use": wanted}
        found = ask(client, call * 2, tools=[WEATHER], tool_choice=choice)
        assert [block.type for block in found.content] == ["tool_use"] * count
        assert found.stop_reason == "tool_use"


def test_thoughts_are_blocks_of_their_own(client: anthropic.Anthropic) -> None:
    how: Any = {
        "model": "tiny",
        "max_tokens": 40,
        "messages": HELLO,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    # "s." is held back as what may become the stop sequence while the tag comes.
    how["stop_sequences"] = ["s. Never"]
    extra = {"grammar": 'start: "So it is." </think> "Yes."'}
    found = client.messages.create(**how, extra_body=extra)
    with client.messages.stream(**how, extra_body=extra) as stream:
        streamed = stream.get_final_message()
    for each in (found, streamed):
        blocks = [(block.type, getattr(block, block.type)) for block in each.content]
        assert blocks == [("thinking", "So it is."), ("text", "Yes.")]
    again = [*HELLO, {"role": "assistant", "content": found.content}, {"role": "user", "content": "Why?"}]
    assert ask(client, "Well", messages=again, thinking={"type": "disabled"}).content[0].text == "Well"


def test_an_agent_loop(client: anthropic.Anthropic) -> None:
    """That a tool is called is forced on the model, of what city is not."""
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    answers = iter([CALL.replace("Oslo", "[A-Z][a-z]{3,8}"), r"It snows in [A-Z][a-z]{3,8}\."])
    counts, asked = [], []
    while True:
        counts.append(client.messages.count_tokens(model="tiny", messages=messages, tools=[WEATHER]).input_tokens)
        found = ask(client, next(answers), messages=messages, tools=[WEATHER])
        assert found.usage.input_tokens + found.usage.cache_read_input_tokens == counts[-1]
        messages.append({"role": "assistant", "content": found.content})
        calls = [block for block in found.content if block.type == "tool_use"]
        if not calls:
            break
        asked += [call.input["city"] for call in calls]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "snow"} for call in calls]
        messages.append({"role": "user", "content": results})
    assert len(asked) == 1 and counts[1] > counts[0]
    assert found.content[0].text.startswith("It snows in ") and found.stop_reason == "end_turn"
    assert found.usage.cache_read_input_tokens > 0, "the conversation is not read again"


def test_tokens_are_counted_as_they_are_read(client: anthropic.Anthropic) -> None:
    how: Any = {"messages": HELLO, "system": [{"type": "text", "text": "Short."}]}
    found = ask(client, "Hi", **how)
    counted = client.messages.count_tokens(model="tiny", **how).input_tokens
    assert counted == found.usage.input_tokens + found.usage.cache_read_input_tokens
    # The model's context is no bound.
    assert (
        client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "x" * 5000}]).input_tokens
        > 5000
    )


def test_a_schema_is_followed(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = ask(client, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert "".join(found.content[0].text.split()) in ('{"a":true}', '{"a":false}')


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens: it is 0"),
        ({"messages": []}, "messages: it must have at least one"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: it is"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "messages[1].role: an answer cannot be begun"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type: it is"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text is missing"),
        ({"system": 3}, "system: it must be a text"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema is missing"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: "),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type: there are no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name: there is no tool"),
        ({"thinking": {"type": "much"}}, "thinking.type: it is"),
        ({"temperature": "hot"}, "temperature: it must be a number"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, "output_config.format.schema"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "the context holds"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_its_path(served: Running, changes: dict[str, Any], told: str) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 5, **changes}
    found = httpx2.post(f"{served.url}/v1/messages", json=body)
    error = found.json()
    assert (found.status_code, error["type"], error["error"]["type"]) == (400, "error", "invalid_request_error")
    assert told in error["error"]["message"]


def test_errors_are_those_of_the_client(client: anthropic.Anthropic, served: Running) -> None:
    with pytest.raises(anthropic.NotFoundError, match="there is none named"):
        ask(client, model="other")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ask(client, max_tokens=-1)
    found = httpx2.post(f"{served.url}/v1/messages", content=b"{", headers={"content-type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["type"] == "invalid_request_error"
    found = httpx2.get(f"{served.url}/v1/messages")
    assert found.status_code == 405 and found.json()["type"] == "error"
