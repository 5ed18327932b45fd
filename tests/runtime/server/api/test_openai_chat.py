"""/v1/chat/completions, by OpenAI's own client over a socket."""

from __future__ import annotations

import openai
import pytest

from tests.runtime.server.conftest import Running

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_an_answer_is_whole(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=8, temperature=0)
    assert found.object == "chat.completion" and found.model == "tiny"
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert found.usage.prompt_tokens == 14 and found.usage.completion_tokens <= 8
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    how = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**how)
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
