"""Who is let in, and what a body may be: over a socket, as clients and pages of other sites would try it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx2
import pytest

from dsv3c.runtime.server.settings import Settings, is_loopback
from tests.runtime.server.conftest import Running
from tests.waiting import PATIENCE

ASK = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
Serving = Callable[..., Running]


def test_loopback_is_known_by_name_and_address() -> None:
    known = ["127.0.0.1", "localhost", "LOCALHOST.", "::1", "[::1]", "127.8.9.1"]
    others = ["0.0.0.0", "", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2", "::"]
    assert [is_loopback(host) for host in (*known, *others)] == [True] * len(known) + [False] * len(others)
    assert Settings().loopback and not Settings(host="0.0.0.0").loopback


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "[::1"}, 403),
        ({"Host": "evil.example@127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:99", "Origin": "http://localhost:99"}, 200),
        ({"Host": "localhost:99", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:99", "Origin": "https://localhost:99"}, 403),
    ],
)
def test_names_and_origins_are_checked_on_loopback(served: Running, headers: dict[str, str], status: int) -> None:
    found = httpx2.get(f"{served.url}/health", headers=headers)
    assert found.status_code == status
    assert "access-control-allow-origin" not in found.headers


def test_an_origin_that_is_let_in_gets_its_headers(serving: Serving) -> None:
    server = serving(cors=("http://app.example",), keys=("secret-1",))
    wanted = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}
    asked = {**wanted, "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = httpx2.options(f"{server.url}/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == "http://app.example"
    refused = httpx2.options(f"{server.url}/v1/models", headers={**wanted, "Origin": "http://evil.example"})
    assert refused.status_code == 403
    found = httpx2.get(f"{server.url}/health", headers=wanted)
    assert found.headers["access-control-allow-origin"] == "http://app.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer secret-1x"}, 401),
        ({"Authorization": "Basic secret-1"}, 401),
        ({"Authorization": "Bearer secrét".encode()}, 401),
        ({"Authorization": "Bearer secret-1"}, 200),
        ({"Authorization": "bearer  secret-2"}, 200),
        ({"x-api-key": "secret-2"}, 200),
    ],
)
def test_a_key_is_wanted(with_keys: Running, headers: dict[str, str | bytes], status: int) -> None:
    found = httpx2.get(f"{with_keys.url}/v1/models", headers=headers)  # type: ignore[arg-type]
    assert found.status_code == status
    if status == 401:
        assert found.json()["error"]["code"] == "invalid_api_key" and found.headers["www-authenticate"] == "Bearer"


@pytest.fixture(scope="module")
def with_keys(tiny_settings: Settings) -> object:
    from dataclasses import replace

    from tests.runtime.server.conftest import running

    with running(replace(tiny_settings, keys=("secret-1", "secret-2"))) as server:
        yield server


def test_health_needs_no_key_and_metrics_do(with_keys: Running) -> None:
    assert httpx2.get(f"{with_keys.url}/health").status_code == 200
    assert httpx2.get(f"{with_keys.url}/metrics").status_code == 401


def test_answers_have_headers_that_keep_browsers_from_mischief(served: Running) -> None:
    headers = httpx2.get(f"{served.url}/health").headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'") and "server" not in headers


def test_a_large_body_is_refused_by_its_length_or_on_the_way(serving: Serving) -> None:
    server = serving(body_limit=1000)
    body = b'{"messages": "' + 5000 * b"x" + b'"}'
    kind = {"Content-Type": "application/json"}
    for content in (body, iter([body[:600], body[600:]])):
        found = httpx2.post(f"{server.url}/v1/chat/completions", content=content, headers=kind)
        assert found.status_code == 413 and found.json()["error"]["type"] == "request_too_large"
    assert httpx2.post(f"{server.url}/v1/chat/completions", json=ASK).status_code == 200


def test_a_slow_body_times_out_without_a_slot(serving: Serving) -> None:
    server = serving(body_seconds=0.2)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as slow:
        slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in slow.recv(1000)
    assert all(not served.admission.busy for served in server.service.models)


def test_a_connection_that_says_nothing_is_closed(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.server.serving._HEADER_SECONDS", 0.3)
    server = serving()
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost:")
        with pytest.raises(ConnectionResetError):
            if not silent.recv(100):
                raise ConnectionResetError


def test_what_is_no_json_is_refused_by_its_type(served: Running) -> None:
    found = httpx2.post(f"{served.url}/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert found.status_code == 415
    assert httpx2.post(f"{served.url}/v1/chat/completions", content=b"{}").status_code == 415
