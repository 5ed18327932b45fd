"""/v1/chat/completions, by OpenAI's own client over a socket."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.server.conftest import SPECIAL, Running

HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["fox", "hen"]}, "age": {"type": "integer", "maximum": 99, "minimum": 10}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def said(client: openai.OpenAI, text: str, **how: Any) -> Any:
    """An answer of exactly this text, streamed: what its chunks come to."""
    return followed(client, {"regex": "".join(f"\\x{byte:02x}" for byte in text.encode("ascii"))}, **how)


def followed(client: openai.OpenAI, extra: dict[str, Any], **how: Any) -> Any:
    """An answer with further fields."""
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, max_completion_tokens=300, extra_body=extra, **how
    ) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def test_an_answer_is_whole(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=8, temperature=0)
    assert found.object == "chat.completion" and found.model == "tiny" and found.id.startswith("chatcmpl-")
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert found.usage is not None and found.usage.prompt_tokens == 14 and found.usage.completion_tokens <= 8
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**how)
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_told_only_on_request(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("what", [("chat/completions", "messages", HELLO), ("completions", "prompt", "Hello")])
def test_chunks_before_that_of_usage_say_that_there_is_none_yet(served: Running, what: tuple[str, str, Any]) -> None:
    path, name, prompt = what
    body = {name: prompt, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
    lines = httpx2.post(f"{served.url}/v1/{path}", json=body).text.split("\n\n")
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert chunks and all(chunk["usage"] is None for chunk in chunks) and last["usage"]["completion_tokens"] > 0


def test_a_seed_of_minus_one_is_a_fresh_one(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 1.0, "seed": -1}
    texts = {client.chat.completions.create(**how).choices[0].message.content for _ in range(2)}
    assert len(texts) == 2


def test_a_seed_makes_an_answer_again_and_several_differ(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 1.0, "n": 3, "seed": -5}
    first, second = (client.chat.completions.create(**how) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.completion_tokens > 12 and first.usage.prompt_tokens == 14
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**how, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_several_are_drawn_where_nothing_says_how(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, n=2)
    assert len({choice.message.content for choice in found.choices}) == 2


def test_stop_strings_end_an_answer_before_them(client: openai.OpenAI) -> None:
    found = said(client, "One two three.", stop=["two", "four"])
    assert found.choices[0].message.content == "One " and found.choices[0].finish_reason == "stop"


def test_log_probabilities_are_of_each_token(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = found.choices[0].logprobs.content
    assert len(content) == found.usage.completion_tokens
    for token in content:
        best = max(token.top_logprobs, key=lambda other: other.logprob)
        assert len(token.top_logprobs) == 3 and (token.token, token.bytes) == (best.token, best.bytes)
        assert token.logprob <= 0
    joined = bytes(byte for token in content for byte in token.bytes)
    assert joined.decode("utf-8", "replace") == found.choices[0].message.content


def test_streamed_log_probabilities_are_the_same(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 9, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**how).choices[0].logprobs.content
    parts = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**how, stream=True)]
    assert [token for part in parts if part for token in part.content] == whole


def test_a_bias_forces_and_forbids(client: openai.OpenAI, served: Running) -> None:
    model = next(iter(served.service.models)).loaded.model  # type: ignore[union-attr]
    token = model.tokenizer.token_id("z")
    found = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, logit_bias={str(token): 100})
    assert found.choices[0].message.content == "zzzz"


def test_json_follows_its_schema(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    for temperature in (0, 1.5):
        found = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format=wanted, temperature=temperature, seed=3
        )
        answer = json.loads(found.choices[0].message.content)
        assert answer["name"] in ("fox", "hen") and 10 <= answer["age"] <= 99
    found = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format={"type": "json_object"}, max_tokens=200
    )
    assert isinstance(json.loads(found.choices[0].message.content), dict)


def test_thoughts_are_told_apart(client: openai.OpenAI) -> None:
    closing = SPECIAL.index("</think>")
    grammar = rf"start: /Hm, a fox\./ <[{closing}]> /\n\nA fox!/"
    found = followed(client, {"grammar": grammar, "chat_template_kwargs": {"thinking": True}})
    message = found.choices[0].message
    assert (message.reasoning_content, message.content) == ("Hm, a fox.", "A fox!")
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is None or found.usage.completion_tokens_details.reasoning_tokens > 0


def test_a_schema_is_for_what_comes_after_the_thoughts(client: openai.OpenAI) -> None:
    closing = SPECIAL.index("</think>")
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    extra = {"chat_template_kwargs": {"thinking": True}, "logit_bias": {str(closing): 8}}
    found = followed(client, extra, response_format=wanted, temperature=1, seed=1)
    assert json.loads(found.choices[0].message.content)["name"] in ("fox", "hen")


def test_tools_are_called_and_their_results_taken(client: openai.OpenAI) -> None:
    found = said(
        client, 'I look.\n<tool_call>{"name": "look_up", "arguments": {"what": "fox"}}</tool_call>', tools=TOOLS
    )
    choice = found.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
    assert call.function.name == "look_up" and json.loads(call.function.arguments) == {"what": "fox"}
    followed = [*HELLO, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "red"}]
    last = client.chat.completions.create(model="tiny", messages=followed, max_tokens=2, tools=TOOLS)
    assert last.usage.prompt_tokens > 100


def test_a_tool_that_has_to_be_called_is(client: openai.OpenAI) -> None:
    chosen: Any = {"type": "function", "function": {"name": "look_up"}}
    found = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        tools=TOOLS,
        tool_choice=chosen,
        max_tokens=40,
        extra_body={"regex": r'\{"q": 1\}\}</tool_call>'},
    )
    (call,) = found.choices[0].message.tool_calls
    assert call.function.name == "look_up" and json.loads(call.function.arguments) == {"q": 1}


def test_allowed_tools_are_the_only_ones(client: openai.OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named = [{"type": "function", "function": {"name": "other"}}]
    how: Any = {"model": "tiny", "messages": HELLO, "tools": [*TOOLS, other], "temperature": 1.5, "max_tokens": 40}
    for seed in range(4):
        chosen: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
        found = client.chat.completions.create(**how, tool_choice=chosen, seed=seed)
        assert found.choices[0].message.tool_calls[0].function.name == "other"
    alone = client.chat.completions.create(**{**how, "tools": [other]}, tool_choice="required")
    assert found.usage is not None and alone.usage is not None
    assert found.usage.prompt_tokens == alone.usage.prompt_tokens  # the others are not told of


def test_a_top_p_of_0_leaves_the_likeliest_token_alone(client: openai.OpenAI) -> None:
    how: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 12}
    drawn, likeliest = (client.chat.completions.create(**how, **each) for each in ({"top_p": 0}, {"temperature": 0}))
    assert drawn.choices[0].message.content == likeliest.choices[0].message.content


def test_arguments_of_a_forced_tool_follow_its_schema(client: openai.OpenAI) -> None:
    """Of random weights. A schema for what is said is none for a call."""
    tools: Any = [
        {"type": "function", "function": {"name": "add", "parameters": SCHEMA}},
        {
            "type": "function",
            "function": {"name": "now", "parameters": {"properties": {}, "additionalProperties": False}},
        },
    ]
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        for seed in range(3):
            found = client.chat.completions.create(
                model="tiny", messages=HELLO, tools=tools, tool_choice=choice, temperature=1.5, seed=seed,
                parallel_tool_calls=False, response_format={"type": "json_object"},
            ).choices[0]  # fmt: skip
            (call,) = found.message.tool_calls
            arguments = json.loads(call.function.arguments)
            assert found.finish_reason == "tool_calls" and not found.message.content
            assert arguments == {} if call.function.name == "now" else arguments["name"] in ("fox", "hen")
            assert choice == "required" or call.function.name == "add"


def test_a_schema_that_cannot_be_followed_is_an_error_of_a_strict_tool_alone(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "$ref": "#/$defs/a"}}}
    how: Any = {"model": "tiny", "messages": HELLO, "tool_choice": "required", "max_tokens": 3}
    assert client.chat.completions.create(**how, tools=[tool]).choices[0].finish_reason == "length"
    tool["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError, match="a strict one cannot be followed"):
        client.chat.completions.create(**how, tools=[tool])


def test_only_one_call_where_parallel_ones_are_not_wanted(client: openai.OpenAI) -> None:
    call = '<tool_call>{"name": "look_up", "arguments": {"what": "</tool_call>"}}</tool_call>'
    for wanted, count in ((True, 2), (False, 1)):
        found = said(client, f"I look.{call}{call}", tools=TOOLS, parallel_tool_calls=wanted).choices[0]
        assert [json.loads(each.function.arguments) for each in found.message.tool_calls] == [
            {"what": "</tool_call>"}
        ] * count
        assert found.finish_reason == "tool_calls" and found.message.content == "I look."


def test_parts_of_a_content_are_joined_and_developers_are_the_system(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert found.usage.prompt_tokens == len(["bos", "user", "user", "assistant"]) + len(
        "system: Be brief.user: Hel\nlo"
    )


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": None}, "messages", "is missing"),
        ({"messages": [{"role": "bird", "content": "x"}]}, "messages[0].role", "must be one of system, developer"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [*HELLO, {"role": "user", "content": {"a": 1}}]}, "messages[1].content", "must be a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "text alone",
        ),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": -1}, "temperature", "from 0 to 100"),
        ({"top_p": -1}, "top_p", "from 0 to 1"),
        ({"n": 5}, "n", "5 answers at once are more than the 4"),
        ({"n": 2, "temperature": 0}, "n", "all results would be the same"),
        ({"max_tokens": 0}, "max_tokens", "from 1 to"),
        ({"stop": [""]}, "stop", "non-empty"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "mapping of token ids"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "the model has no token 99999"),
        ({"top_logprobs": 3}, "top_logprobs", "goes with logprobs"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "must be one of"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
            "cannot be followed",
        ),
        ({"regex": "("}, "regex", "cannot be followed"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "other"}}}, "tool_choice", "no tool 'other'"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required"}}},
            "tool_choice.allowed_tools.tools",
            "none of them is among the tools",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type", "must be one of"),
        ({"functions": [{"name": "f"}]}, "functions", "they are given as tools"),
        ({"function_call": "auto"}, "function_call", "there is tool_choice"),
        ({"web_search_options": {}}, "web_search_options", "no tools of its own"),
        ({"modalities": ["text", "audio"]}, "modalities", "answers in text"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "no variable"),
        ({"messages": [{"role": "user", "content": 1200 * "x"}]}, "messages", "the context holds 1024"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_told_with_its_field(
    client: openai.OpenAI, body: dict[str, Any], field: str, message: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        client.post("/chat/completions", cast_to=object, body={"messages": HELLO, "stream": stream, **body})
    assert caught.value.param == field


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="served are tiny") as caught:
        client.chat.completions.create(model="../secret", messages=HELLO)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
