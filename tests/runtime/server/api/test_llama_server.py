"""What llama-server's clients ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dsv3c.runtime.server.settings import Settings
from tests.runtime.server.conftest import CONTEXT, SPECIAL, Running, Steps, running
from tests.waiting import until


def get(served: Running, path: str) -> Any:
    found = httpx2.get(f"{served.url}{path}")
    assert found.status_code == 200, found.text
    return found.json()


def post(served: Running, path: str, **body: Any) -> Any:
    found = httpx2.post(f"{served.url}{path}", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_health_is_ok(served: Running) -> None:
    assert get(served, "/health")["status"] == "ok" == get(served, "/v1/health")["status"]


def test_properties_name_the_model_and_no_path(served: Running) -> None:
    found = get(served, "/props")
    assert found["total_slots"] == 4 and found["default_generation_settings"]["n_ctx"] == CONTEXT
    assert found["model_alias"] == "tiny" and "<|assistant|>" in found["chat_template"]
    assert (found["bos_token"], found["eos_token"]) == SPECIAL[:2]
    assert "/" not in str({**found, "chat_template": ""})


def test_models_are_listed(served: Running) -> None:
    get(served, "/props")
    (found,) = get(served, "/v1/models")["data"]
    assert found["id"] == "tiny" and found["object"] == "model" and found["meta"]["n_ctx"] == CONTEXT
    assert get(served, "/v1/models/tiny") == found
    missing = httpx2.get(f"{served.url}/v1/models/..%2Fother")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_texts_become_tokens_and_texts_again(served: Running) -> None:
    text = "Ein Märchen"
    tokens = post(served, "/tokenize", content=text)["tokens"]
    assert len(tokens) == len(text.encode()) and post(served, "/detokenize", tokens=tokens) == {"content": text}
    pieces = post(served, "/tokenize", content="ä", with_pieces=True)["tokens"]
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0xA4]]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 1}, "content"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [2**40]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 100_000]}, "tokens[1]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(served: Running, path: str, body: Any, field: str) -> None:
    found = httpx2.post(f"{served.url}{path}", json=body)
    assert found.status_code == 400 and found.json()["error"]["param"] == field


def test_slots_say_who_is_at_work(tiny_settings: Settings) -> None:
    steps = Steps(first=5)
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "ignore_eos": True, "stream": True}
    with running(tiny_settings, steps.load) as server:
        assert [slot["is_processing"] for slot in get(server, "/slots")] == 4 * [False]
        with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body):
            until(lambda: steps.made == 5)
            busy = [slot for slot in get(server, "/slots?model=tiny") if slot["is_processing"]]
        steps.gate.set()
    assert len(busy) == 1 and busy[0]["n_prompt_tokens"] == 11 and busy[0]["n_decoded"] >= 1


def test_slots_are_of_all_models_or_of_one(serving: Callable[..., Running], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tiny)
    server = serving(models=tmp_path)
    assert {slot["model"] for slot in get(server, "/slots")} == {"tiny", "other"}
    assert {slot["model"] for slot in get(server, "/slots?model=other")} == {"other"}
    assert [model["status"]["value"] for model in get(server, "/v1/models")["data"]][1] == "unloaded"
    assert post(server, "/v1/completions", model="other", prompt="x", max_tokens=1)["model"] == "other"
    assert httpx2.get(f"{server.url}/slots?model=third").status_code == 404


def test_metrics_count_what_happened(serving: Callable[..., Running]) -> None:
    server = serving()
    for _ in range(2):
        post(server, "/v1/completions", prompt="Once upon a time", max_tokens=5, ignore_eos=True)
    httpx2.post(f"{server.url}/v1/completions", json={"prompt": 1})
    httpx2.get(f"{server.url}/invented/{'x' * 50}")
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
    model = 'model="tiny"'
    assert values['dsv3c_http_requests_total{path="/v1/completions",status="200"}'] == 2
    assert values['dsv3c_http_requests_total{path="/v1/completions",status="400"}'] == 1
    assert values['dsv3c_http_requests_total{path="other",status="404"}'] == 1
    assert values[f'dsv3c_tokens_total{{kind="generated",{model}}}'] == 10
    assert values[f"dsv3c_time_to_first_token_seconds_count{{{model}}}"] == 2
    assert values[f"dsv3c_inter_token_seconds_count{{{model}}}"] == 8
    assert values[f'dsv3c_answers_total{{{model},reason="length"}}'] == 2
    assert values[f"dsv3c_batch_slots{{{model}}}"] == 4 and values[f"dsv3c_batch_sequences{{{model}}}"] == 0
    assert 0 < values[f"dsv3c_cache_pages_free{{{model}}}"] <= values[f"dsv3c_cache_pages{{{model}}}"]
    assert f'dsv3c_draft_tokens_total{{{model},outcome="accepted"}}' in values
    assert not any("invented" in name for name in values)


def test_an_unknown_address_and_a_wrong_method_are_refused_in_form(served: Running) -> None:
    for found, status in (
        (httpx2.get(f"{served.url}/nothing"), 404),
        (httpx2.get(f"{served.url}/v1/chat/completions"), 405),
        (httpx2.put(f"{served.url}/health"), 405),
    ):
        assert found.status_code == status and found.json()["error"]["message"]
