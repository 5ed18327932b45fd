"""/v1/completions, by OpenAI's own client over a socket."""

from __future__ import annotations

from typing import Any

import numpy as np
import openai
import pytest

from dsv3c.runtime.model import Model
from tests.runtime.server.conftest import Running


@pytest.fixture(scope="module")
def client(served: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI, served: Running) -> Model:
    client.completions.create(model="tiny", prompt="x", max_tokens=1)
    loaded = next(iter(served.service.models)).loaded
    assert loaded is not None
    return loaded.model


def test_a_text_goes_on_as_the_model_alone_says(client: openai.OpenAI, model: Model) -> None:
    alone = model.generate("Once upon", max_new_tokens=16, temperature=0)
    found = client.completions.create(model="tiny", prompt="Once upon", temperature=0)  # 16 tokens, if nothing is said
    assert found.object == "text_completion" and found.choices[0].text == alone.text
    assert found.usage.completion_tokens == len(alone.token_ids)
    streamed = client.completions.create(model="tiny", prompt="Once upon", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == alone.text


def test_ids_are_prompts_as_well(client: openai.OpenAI, model: Model) -> None:
    ids = model.tokenizer.encode("Once upon")
    found = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=4)
    assert found.choices[0].text == model.generate("Once upon", max_new_tokens=4, temperature=0).text


def test_several_prompts_have_answers_in_their_order(client: openai.OpenAI, model: Model) -> None:
    prompts = ["One", "Two", "Three"]
    found = client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=6)
    alone = [model.generate(prompt, max_new_tokens=6, temperature=0).text for prompt in prompts]
    assert [choice.text for choice in found.choices] == alone and [choice.index for choice in found.choices] == [
        0,
        1,
        2,
    ]
    assert found.usage.prompt_tokens == sum(len(model.tokenizer.encode(prompt)) for prompt in prompts)
    streamed = ["", "", ""]
    for chunk in client.completions.create(model="tiny", prompt=prompts, temperature=0, max_tokens=6, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone


def test_results_of_several_prompts_are_numbered_by_prompt(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="tiny", prompt=["A", "B"], n=2, max_tokens=3, seed=1, temperature=1, echo=True
    )
    assert [choice.text[0] for choice in found.choices] == ["A", "A", "B", "B"]


def test_a_prompt_is_echoed_with_the_probabilities_of_its_tokens(client: openai.OpenAI, model: Model) -> None:
    found = client.completions.create(
        model="tiny", prompt="The fox", max_tokens=2, temperature=0, echo=True, logprobs=2
    ).choices[0]
    ids = model.tokenizer.encode("The fox")
    logits = model.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    told = found.logprobs
    assert found.text.startswith("The fox") and len(told.tokens) == len(ids) + 2
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    np.testing.assert_allclose(
        told.token_logprobs[1 : len(ids)], [expected[i, ids[i + 1]] for i in range(len(ids) - 1)], 1e-4
    )
    assert all(len(top) <= 2 for top in told.top_logprobs[1:])
    assert told.text_offset[: len(ids)] == list(range(len(ids)))


def test_a_prompt_is_scored_alone(client: openai.OpenAI) -> None:
    """As evaluation harnesses do."""
    found = client.completions.create(model="tiny", prompt="The fox", max_tokens=0, echo=True, logprobs=1)
    assert found.choices[0].text == "The fox" and found.usage.completion_tokens == 0
    assert len(found.choices[0].logprobs.tokens) == found.usage.prompt_tokens


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [[1, -2]]}, "prompt[0][1]"),
        ({"prompt": [9999]}, "prompt"),
        ({"prompt": 5 * ["x"]}, "prompt"),
        ({"prompt": 1025 * "x"}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "logprobs": 99}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(client: openai.OpenAI, body: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", cast_to=object, body=body)
    assert caught.value.param == field
