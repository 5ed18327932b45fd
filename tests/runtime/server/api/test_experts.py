"""`experts: true`: the counts of a request's own tokens, in chats and completions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.runtime.server.conftest import Running

HELLO = [{"role": "user", "content": "Hello"}]
HOW: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
COUNTED = {"experts": True, "ignore_eos": True}
EXPERTS, TOP_K = 8, 3  # of the tiny model


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def check(found: Any, prompt: int, answer: int) -> None:
    """prompt: tokens that were read; the prefix cache may have spared some of them."""
    assert (found["experts"], found["top_k"], found["answer_tokens"]) == (EXPERTS, TOP_K, answer)
    assert 0 < found["prompt_tokens"] <= prompt
    for layer in found["layers"]:
        assert (len(layer["prompt"]), len(layer["answer"])) == (EXPERTS, EXPERTS)
        assert sum(layer["prompt"]) == found["prompt_tokens"] * TOP_K
        assert sum(layer["answer"]) == answer * TOP_K


def test_a_chat_tells_the_experts_of_its_own_tokens(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(messages=HELLO, extra_body=COUNTED, **HOW)
    check(found.choices[0].experts, found.usage.prompt_tokens, 5)  # the last token is not fed


def test_a_stream_tells_them_with_its_end(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, extra_body=COUNTED, **HOW))
    told = [getattr(chunk.choices[0], "experts", None) for chunk in chunks]
    assert [each is not None for each in told] == [False] * (len(told) - 1) + [True]
    check(told[-1], 14, 5)


def test_a_completion_tells_them_too(client: openai.OpenAI) -> None:
    found = client.completions.create(prompt="Once", extra_body=COUNTED, **HOW)
    check(found.choices[0].experts, found.usage.prompt_tokens, 5)
    *_, last = client.completions.create(prompt="Once", stream=True, extra_body=COUNTED, **HOW)
    check(last.choices[0].experts, 5, 5)


def test_requests_side_by_side_do_not_count_each_other(client: openai.OpenAI) -> None:
    def ask(length: int) -> Any:
        how = {**HOW, "max_tokens": length}
        return client.chat.completions.create(messages=HELLO, extra_body=COUNTED, **how).choices[0].experts

    with ThreadPoolExecutor(4) as pool:
        for length, found in zip((3, 9, 21, 40), pool.map(ask, (3, 9, 21, 40)), strict=True):
            check(found, 14, length - 1)


def test_nobody_who_does_not_ask_is_told(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(messages=HELLO, **HOW)
    assert not hasattr(found.choices[0], "experts")


def test_a_model_without_experts_refuses_by_the_field(
    client: openai.OpenAI, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.chat.completions.create(messages=HELLO, **HOW)  # so that it is loaded
    (loaded,) = [each.loaded for each in served.service.models]
    assert loaded is not None
    monkeypatch.setattr(loaded.model, "config", {**loaded.model.config, "n_routed_experts": None})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(messages=HELLO, extra_body=COUNTED, **HOW)
    assert caught.value.param == "experts" and "no experts" in caught.value.message
