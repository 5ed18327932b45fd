"""Bodies that nobody should send, for fuzzing the parsers of requests: fields of the right name with any value, some of
them right. Answers are 2xx or 4xx whatever is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

Values = st.SearchStrategy[Any]
ROOT = Path(__file__).parents[3]

# No shrinking: a body that fails is small enough, and each example costs a request.
FEW = settings(max_examples=40, phases=(Phase.generate,), suppress_health_check=list(HealthCheck), database=None)
MANY = settings(FEW, max_examples=2_500)

numbers = st.one_of(
    st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1e308, 2**63])
)
texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "user", "text", "\x00", "a" * 3000, "{{", "</think>", "€漢"])
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
anything: Values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
schemas: Values = st.one_of(
    anything,
    st.fixed_dictionaries({"type": st.sampled_from(["object", "array", "integer", "string", "nothing"])}),
    st.just({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
    st.just({"pattern": "(a+)+$", "type": "string"}),
)
parts = st.lists(st.one_of(anything, st.fixed_dictionaries({"type": texts, "text": texts})), max_size=2)
calls = st.lists(
    st.one_of(
        anything,
        st.fixed_dictionaries(
            {
                "id": scalars,
                "function": st.fixed_dictionaries({"name": texts, "arguments": st.one_of(texts, st.just("{}"))}),
            }
        ),
    ),
    max_size=2,
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"]), "content": st.one_of(texts, parts)},
            optional={"tool_calls": calls, "tool_call_id": scalars, "reasoning_content": scalars, "name": scalars},
        ),
        anything,
    ),
    max_size=3,
)
tools = st.lists(
    st.one_of(
        anything,
        st.fixed_dictionaries(
            {
                "type": st.just("function"),
                "function": st.fixed_dictionaries(
                    {"name": texts}, optional={"parameters": schemas, "description": scalars}
                ),
            }
        ),
    ),
    max_size=2,
)
lengths = st.sampled_from([1, 2, 3, 0, -1, "1", None])


def bodies(required: Mapping[str, Values], optional: Mapping[str, Values]) -> Values:
    """required: fields that most bodies have."""
    return st.fixed_dictionaries(dict(required), optional=dict(optional)) | st.dictionaries(texts, anything, max_size=3)


def check(url: str, path: str, body: Any, client: httpx2.Client) -> None:
    """The answer to a body is one, or a refusal that says why."""
    content = json.dumps(body).encode()
    found = client.post(f"{url}{path}", content=content, headers={"Content-Type": "application/json"})
    assert 200 <= found.status_code < 300 or 400 <= found.status_code < 500, (found.status_code, found.text, body)
    if found.status_code >= 400:
        message = found.json()["error"]["message"]
        assert message and "Traceback" not in message and str(ROOT) not in message and len(message) < 2_000
    elif found.headers["content-type"].startswith("text/event-stream"):
        faults = [
            line for line in found.text.splitlines() if line.startswith(('data: {"error"', 'data: {"type":"error"'))
        ]
        faults += [line for line in found.text.splitlines() if line.startswith('data: {"type":"response.failed"')]
        assert not any(kind in line for line in faults for kind in ('"server_error"', '"api_error"')), (faults, body)
