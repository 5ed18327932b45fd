"""No body brings more than a refusal: every parser of requests, fuzzed."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.server import bodies, item_bodies
from tests.runtime.server.bodies import FEW, MANY, Values, anything, check, lengths, messages, numbers, scalars, texts
from tests.runtime.server.conftest import Running

_SAMPLING: Mapping[str, Values] = {
    "model": st.one_of(st.just("tiny"), scalars),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p"), numbers | scalars),
    "n": st.sampled_from([1, 2, 0, 99, "2"]),
    "seed": numbers | scalars,
    "stop": st.lists(texts, max_size=2) | scalars,
    "logit_bias": st.dictionaries(texts | st.integers(0, 400).map(str), numbers, max_size=3) | scalars,
    "stream": st.booleans() | scalars,
    "stream_options": st.fixed_dictionaries({"include_usage": scalars}) | scalars,
    "response_format": st.one_of(
        anything,
        st.just({"type": "json_object"}),
        st.fixed_dictionaries(
            {"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"schema": bodies.schemas})}
        ),
    ),
    "regex": texts | scalars,
    "grammar": texts | scalars,
    "top_k": numbers | scalars,
}
_CHAT = bodies.bodies(
    {"messages": messages, "max_tokens": lengths},
    {
        **_SAMPLING,
        "logprobs": scalars,
        "top_logprobs": st.integers(-1, 25) | scalars,
        "tools": bodies.tools | anything,
        "tool_choice": st.sampled_from(["auto", "none", "required", {"function": {"name": "x"}}]) | anything,
        "chat_template_kwargs": anything,
        "reasoning_effort": scalars,
    },
)
_PROMPTS = st.one_of(
    texts, st.lists(texts | st.integers(0, 400), max_size=3), st.lists(st.lists(st.integers(0, 400)), max_size=2)
)
_COMPLETION = bodies.bodies(
    {"prompt": _PROMPTS | anything, "max_tokens": lengths},
    {**_SAMPLING, "echo": scalars, "logprobs": st.integers(-1, 25) | scalars, "best_of": scalars, "suffix": scalars},
)
_TOKENIZE = bodies.bodies(
    {"content": texts | anything}, {"add_special": scalars, "with_pieces": scalars, "model": scalars}
)
_DETOKENIZE = bodies.bodies({"tokens": st.lists(st.integers(-1, 400) | anything, max_size=4) | anything}, {})
_BODIES = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/tokenize": _TOKENIZE,
    "/detokenize": _DETOKENIZE,
    "/v1/messages": item_bodies.ANTHROPIC,
    "/v1/messages/count_tokens": item_bodies.COUNTED,
    "/v1/responses": item_bodies.RESPONSES,
}


@pytest.fixture(scope="module")
def client() -> httpx2.Client:
    return httpx2.Client()


@pytest.mark.parametrize("path", _BODIES)
def test_no_body_is_answered_with_a_fault_of_the_server(served: Running, client: httpx2.Client, path: str) -> None:
    @FEW
    @given(_BODIES[path])
    def ask(body: object) -> None:
        check(served.url, path, body, client)

    ask()


@pytest.mark.thorough
@pytest.mark.parametrize("path", _BODIES)
def test_none_of_ten_thousand_bodies_is_either(served: Running, client: httpx2.Client, path: str) -> None:
    @MANY
    @given(_BODIES[path])
    def ask(body: object) -> None:
        check(served.url, path, body, client)

    ask()
