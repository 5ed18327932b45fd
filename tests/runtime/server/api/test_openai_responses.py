"""/v1/responses, by OpenAI's own client over a socket."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.server.conftest import Running

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": None,
}
# What a model of random weights would hardly say by itself: a regular expression leaves it no other words.
CALL = r'I look\. <tool_call>\{"name": "get_weather", "arguments": \{"city": "Oslo"\}\}</tool_call>'
THINKING = {"grammar": 'start: "So it is." </think> "Yes."'}


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, regex: str | None = None, **how: Any) -> Any:
    given = {"model": "tiny", "input": "Hello", "max_output_tokens": 120, "temperature": 0, **how}
    return client.responses.create(**given, extra_body={"regex": regex})


def test_an_answer_is_whole(client: openai.OpenAI) -> None:
    found = ask(client, "Hi there", instructions="Be short.", metadata={"a": "b"})
    assert (found.object, found.status, found.model, found.output_text) == ("response", "completed", "tiny", "Hi there")
    assert [item.type for item in found.output] == ["message"] and found.output[0].status == "completed"
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.usage.output_tokens == len("Hi there") and found.error is None
    assert (found.instructions, found.metadata, found.temperature) == ("Be short.", {"a": "b"}, 0)


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI) -> None:
    found = ask(client, max_output_tokens=4)
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert found.output[0].status == "incomplete" and found.usage.output_tokens == 4


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "input": "Hello", "temperature": 0, "extra_body": {"regex": "Hi [a-z]{9}"}}
    whole = client.responses.create(**how)
    events = list(client.responses.create(**how, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text == events[-4].text
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage.total_tokens == whole.usage.total_tokens
    assert events[0].response.output == [] and events[0].response.id == events[-1].response.id


def test_a_call_of_a_tool(client: openai.OpenAI) -> None:
    found = ask(client, CALL, tools=[WEATHER])
    text, call = found.output
    assert (text.type, text.content[0].text) == ("message", "I look.")
    assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", '{"city": "Oslo"}')
    assert found.status == "completed" and call.call_id.startswith("call_")


def test_a_call_is_streamed(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "input": "Hello", "tools": [WEATHER], "extra_body": {"regex": CALL}}
    with client.responses.stream(**how) as stream:
        events = list(stream)
        found = stream.get_final_response()
    parts = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(parts) == '{"city": "Oslo"}' and len(parts) > 3
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert done.arguments == '{"city": "Oslo"}'
    assert [item.type for item in found.output] == ["message", "function_call"]


def test_which_tool_has_to_be_called(client: openai.OpenAI) -> None:
    other = {**WEATHER, "name": "other"}
    free, rest = r'other", "arguments": \{\}\}</tool_call>', r"\{\}\}</tool_call>"
    named = {"type": "function", "name": "other"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice, regex in (("required", free), (named, rest), (allowed, free)):
        found = ask(client, regex, tools=[WEATHER, other], tool_choice=choice)
        assert [(item.type, item.name, item.arguments) for item in found.output] == [("function_call", "other", "{}")]
    assert "<tool_call>" in ask(client, CALL, tools=[WEATHER], tool_choice="none").output_text


def test_only_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    call = r'<tool_call>\{"name": "a", "arguments": \{\}\}</tool_call>'
    for wanted, count in ((True, 2), (False, 1)):
        found = ask(client, call * 2, tools=[WEATHER], parallel_tool_calls=wanted)
        assert [item.type for item in found.output] == ["function_call"] * count


def test_thoughts_are_items_of_their_own(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "input": "Hello", "reasoning": {"effort": "high"}, "extra_body": THINKING}
    found = client.responses.create(**how)
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert (found.output[0].content[0].text, found.output_text) == ("So it is.", "Yes.")
    assert found.usage.output_tokens_details.reasoning_tokens > 0
    events = list(client.responses.create(**how, stream=True))
    told = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(told) == "So it is." and events[-1].response.output_text == "Yes."


def test_a_conversation_goes_on_by_its_id_or_by_its_items(client: openai.OpenAI) -> None:
    first = ask(client, "One")
    by_id = ask(client, "Two", input="More", previous_response_id=first.id, instructions="S")
    items = [{"role": "user", "content": "Hello"}, *first.output, {"role": "user", "content": "More"}]
    by_items = ask(client, "Two", input=items, instructions="S", store=False)
    assert by_id.usage.input_tokens == by_items.usage.input_tokens > first.usage.input_tokens
    # Instructions are not carried over; what was said before is.
    third = ask(client, "Three", input="Why?", previous_response_id=by_id.id)
    whole = [
        *items,
        *by_id.output,
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ]
    assert third.usage.input_tokens == ask(client, "Three", input=whole).usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="previous_response_id: there is no such response"):
        ask(client, previous_response_id=by_items.id)


def test_a_response_is_kept_until_it_is_deleted(client: openai.OpenAI) -> None:
    found = ask(client, "Hi")
    streamed = list(client.responses.create(model="tiny", input="Hello", max_output_tokens=3, stream=True))[-1].response
    for each in (found, streamed):
        assert client.responses.retrieve(each.id) == each
        client.responses.delete(each.id)
        for refused in (client.responses.retrieve, client.responses.delete):
            with pytest.raises(openai.NotFoundError, match="not remembered"):
                refused(each.id)


def test_an_agent_loop(client: openai.OpenAI) -> None:
    """That a tool is called is forced on the model, of what city is not."""
    said: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    answers = iter([CALL.replace("Oslo", "[A-Z][a-z]{3,8}"), r"It snows in [A-Z][a-z]{3,8}\."])
    read, asked = [], []
    while True:
        found = ask(client, next(answers), input=said, tools=[WEATHER])
        read.append(found.usage.input_tokens)
        said += found.output
        calls = [item for item in found.output if item.type == "function_call"]
        if not calls:
            break
        asked += [json.loads(call.arguments)["city"] for call in calls]
        said += [{"type": "function_call_output", "call_id": call.call_id, "output": "snow"} for call in calls]
    assert len(asked) == 1 and read[1] > read[0]
    assert found.output_text.startswith("It snows in ")
    assert found.usage.input_tokens_details.cached_tokens > 0, "the conversation is not read again"


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = ask(client, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    assert "".join(found.output_text.split()) in ('{"a":true}', '{"a":false}')


def test_probabilities_of_tokens(client: openai.OpenAI) -> None:
    found = ask(client, "Hi", include=["message.output_text.logprobs"], top_logprobs=2)
    scored = found.output[0].content[0].logprobs
    assert [token.token for token in scored] == ["H", "i"] and all(len(token.top_logprobs) == 2 for token in scored)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"instructions": 3}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": "x"}, "metadata"),
        ({"input": "x" * 5000}, "input"),
    ],
)
def test_what_is_wrong_is_told_by_its_path(served: Running, changes: dict[str, Any], param: str) -> None:
    body = {"model": "tiny", "input": "Hello", "max_output_tokens": 5, **changes}
    found = httpx2.post(f"{served.url}/v1/responses", json=body)
    assert (found.status_code, found.json()["error"].get("param")) == (400, param), found.text
