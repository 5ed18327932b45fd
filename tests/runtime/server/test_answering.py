"""Answers under way: who goes away frees his pages, who waits is kept company, what breaks breaks once."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dsv3c.runtime.errors import DeviceLost
from dsv3c.runtime.model import Model
from dsv3c.runtime.server import loading
from dsv3c.runtime.server.models import Served
from dsv3c.runtime.server.settings import Settings
from tests.runtime.server.conftest import Running, Steps, running
from tests.waiting import PATIENCE, until

LONG: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "ignore_eos": True}
Serving = Callable[..., Running]


def the_model(server: Running) -> Served:
    return next(iter(server.service.models))


def free_pages(served: Served) -> int:
    """Those of the cache that no request holds: of former requests some may be kept."""
    assert served.loaded is not None
    model = served.loaded.model
    cache = model.engine.scheduler.prefix_cache
    assert cache is not None
    return model.session.pool.free_pages


@contextmanager
def streaming(server: Running, **body: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream; the client goes away at the end of the body."""
    asked = {**LONG, "stream": True, **body}
    with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=asked) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer.iter_lines()


@contextmanager
def asking(server: Running, receives: int | None = None, **body: Any) -> Iterator[None]:
    """A client that reads nothing, and leaves at the end of the body. receives: bytes that the system takes for it."""
    content = json.dumps({**LONG, **body}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as client:
        if receives is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        client.connect(("127.0.0.1", server.port))
        client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_frees_slot_and_pages(tiny_settings: Settings, stream: bool) -> None:
    steps = Steps(seconds=0.02)
    with running(tiny_settings, steps.load) as server:
        served = the_model(server)
        httpx2.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 1})
        before, made = free_pages(served), steps.made
        with asking(server, stream=stream):
            until(lambda: steps.made > made + 2)
        until(lambda: served.admission.busy == 0)
        assert served.loaded is not None
        until(lambda: served.loaded is not None and served.loaded.model.engine.scheduler.idle)
        until(lambda: served.loaded is not None and served.loaded.leases == 0)
        assert free_pages(served) == before
        assert steps.made < LONG["max_tokens"]


def test_what_was_written_for_who_went_away_is_counted(tiny_settings: Settings) -> None:
    with running(tiny_settings, Steps(seconds=0.02).load) as server:
        with streaming(server, n=2) as lines:
            for _ in range(20):
                next(lines)
        until(lambda: the_model(server).admission.busy == 0)
        lines = iter(httpx2.get(f"{server.url}/metrics").text.splitlines())
        counted = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}
    assert counted['dsv3c_answers_total{model="tiny",reason="cancelled"}'] == 2
    assert counted['dsv3c_tokens_total{kind="prompt",model="tiny"}'] == 22
    assert counted['dsv3c_tokens_total{kind="generated",model="tiny"}'] >= 4


def test_a_silent_stream_is_kept_open_by_comments(tiny_settings: Settings) -> None:
    steps = Steps(first=0)
    with running(tiny_settings, steps.load) as server, streaming(server, max_tokens=1) as lines:
        assert next(lines) == ": keep-alive"
        steps.gate.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_request_that_waits_has_its_turn_and_too_many_are_sent_away(tiny_settings: Settings) -> None:
    steps = Steps(first=0)
    with running(replace(tiny_settings, max_batch=1, queue=1), steps.load) as server:
        served, found = the_model(server), list[int]()

        def ask() -> None:
            body = {**LONG, "max_tokens": 2}
            found.append(httpx2.post(f"{server.url}/v1/chat/completions", json=body).status_code)

        with streaming(server):
            waiting = threading.Thread(target=ask)
            waiting.start()
            until(lambda: len(served.admission.waiting) == 1)
            refused = httpx2.post(f"{server.url}/v1/chat/completions", json=LONG)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        steps.gate.set()
        waiting.join(PATIENCE)
        assert found == [200]
        until(lambda: served.admission.busy == 0)


def test_a_client_that_waits_and_goes_away_leaves_the_line(tiny_settings: Settings) -> None:
    steps = Steps(first=0)
    with running(replace(tiny_settings, max_batch=1), steps.load) as server:
        served = the_model(server)
        with streaming(server):
            with asking(server):
                until(lambda: len(served.admission.waiting) == 1)
            until(lambda: not served.admission.waiting)
        steps.gate.set()


def test_a_client_that_takes_nothing_loses_its_place(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.server.serving._HEADER_SECONDS", 0.5)
    steps, much = Steps(), {"stream": True, "logprobs": True, "top_logprobs": 20}
    with (
        running(replace(tiny_settings, send_seconds=0.3), steps.load, buffer=4096) as server,
        asking(server, receives=4096, **much),
    ):
        until(lambda: steps.made)
        until(lambda: the_model(server).admission.busy == 0)
        until(lambda: not server.server.server_state.connections)


def breaking(after: int) -> Callable[[Path, Settings], Model]:
    """Loads a model whose device is lost in a step; the next one that is loaded is whole."""
    loads = iter([True])

    def load(folder: Path, settings: Settings) -> Model:
        model = loading.load(folder, settings)
        if not next(loads, False):
            return model
        execute, left = model.session._execute, iter(range(after))

        def failing(*given: Any, **more: Any) -> Any:
            if next(left, None) is None:
                raise DeviceLost(device="/dev/secret", what="a step")
            return execute(*given, **more)

        model.session._execute = failing  # type: ignore[method-assign]
        return model

    return load


def test_a_device_fault_is_told_once_and_the_model_loaded_again(tiny_settings: Settings) -> None:
    with running(tiny_settings, breaking(3)) as server:
        served = the_model(server)
        found = httpx2.post(f"{server.url}/v1/chat/completions", json=LONG)
        assert found.status_code == 500 and "secret" not in found.text
        assert found.json()["error"]["type"] == "server_error"
        until(lambda: served.faults == 1 and served.loaded is not None)
        health = httpx2.get(f"{server.url}/health")
        assert health.json() == {"status": "ok", "faults": 1}
        again = httpx2.post(f"{server.url}/v1/chat/completions", json={**LONG, "max_tokens": 3})
        assert again.status_code == 200 and again.json()["usage"]["completion_tokens"] == 3


def test_a_fault_within_a_stream_is_its_last_event(tiny_settings: Settings) -> None:
    with running(tiny_settings, breaking(3)) as server, streaming(server) as lines:
        found = [line for line in lines if line.startswith("data:")]
    assert "error" in found[-1] and "the model failed" in found[-1] and "secret" not in found[-1]


def test_health_says_what_is_broken(tiny_settings: Settings) -> None:
    looked = threading.Event()
    looked.set()
    load = breaking(0)

    def gated(folder: Path, settings: Settings) -> Model:
        assert looked.wait(PATIENCE)
        return load(folder, settings)

    with running(tiny_settings, gated) as server:
        served = the_model(server)
        until(lambda: served.loaded is not None)
        looked.clear()
        assert httpx2.post(f"{server.url}/v1/chat/completions", json=LONG).status_code == 500
        broken = httpx2.get(f"{server.url}/health")
        looked.set()
        assert broken.status_code == 503 and broken.json()["models"] == {"tiny": "DeviceLost"}
        until(lambda: httpx2.get(f"{server.url}/health").status_code == 200)


def test_a_template_that_does_not_end_is_an_error_soon(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv3c.runtime.text.chat_template.SECONDS", 0.2)
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

    def load(folder: Path, settings: Settings) -> Model:
        model = loading.load(folder, settings)
        model.tokenizer._template_file = template  # as a hostile checkpoint would have it
        return model

    with running(tiny_settings, load) as server:
        found = httpx2.post(f"{server.url}/v1/chat/completions", json=LONG)
        assert found.status_code == 400 and found.json()["error"]["param"] == "messages"
        assert httpx2.get(f"{server.url}/health").status_code == 200


def test_the_server_answers_others_while_a_step_is_under_way(tiny_settings: Settings) -> None:
    steps = Steps(first=0)
    with running(tiny_settings, steps.load) as server:
        with streaming(server, max_tokens=1):
            assert httpx2.get(f"{server.url}/slots").json()[0]["is_processing"]
        steps.gate.set()


def test_many_at_once_say_what_each_says_alone(served: Running) -> None:
    texts = {}
    prompts = [f"{number}: once upon a time" for number in range(10)]

    def ask(prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "seed": 1}
        found = httpx2.post(f"{served.url}/v1/completions", json=body)
        texts[prompt] = found.json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loaded = the_model(served).loaded
    assert loaded is not None
    alone = {prompt: loaded.model.generate(prompt, max_new_tokens=24, temperature=0).text for prompt in prompts}
    assert texts == alone
    assert the_model(served).admission.busy == 0


def test_what_a_model_has_for_a_default_makes_no_further_answers(tiny_settings: Settings) -> None:
    def load(folder: Path, settings: Settings) -> Model:
        model = loading.load(folder, settings)
        model.defaults = model.defaults.updated({"num_return_sequences": 3, "temperature": 1.0})
        return model

    with running(tiny_settings, load) as server:
        asked = {"prompt": "x", "max_tokens": 2, "ignore_eos": True}
        found = httpx2.post(f"{server.url}/v1/completions", json=asked).json()
        chat = httpx2.post(f"{server.url}/v1/chat/completions", json={**LONG, "max_tokens": 2}).json()
        assert len(found["choices"]) == len(chat["choices"]) == 1
        assert the_model(server).faults == 0
