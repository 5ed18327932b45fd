"""Clients that speak HTTP badly, or oddly but rightly, over sockets of their own: what they get, and that others do not
notice."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Sequence as Many
from contextlib import closing, suppress

import httpx2
import pytest

from tests.runtime.server.conftest import Running
from tests.waiting import PATIENCE, until

ASK = {"prompt": "Grüß Gott 日本 🦊", "max_tokens": 4, "temperature": 0}
KIND = "Content-Type: application/json"


def said(server: Running, *pieces: bytes, ends: bool = False) -> bytes:
    """All that the server answers to these pieces until it closes the connection, or says nothing for a while."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)) as client:
        found = b""
        # A server that refuses a long request closes before all of it is sent; its answer waits here all the same.
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.001 * (len(pieces) > 1))
            if ends:
                client.shutdown(socket.SHUT_WR)
        try:
            while piece := client.recv(1 << 16):
                found += piece
        except ConnectionResetError:
            pass
        return found


def asking(*headers: str, body: bytes = json.dumps(ASK).encode(), version: str = "1.1") -> bytes:
    lines = [f"POST /v1/completions HTTP/{version}", "Host: localhost", KIND, f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1]) if answer else 0


def text(answer: bytes) -> str:
    found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
    return found


@pytest.fixture(scope="module")
def usual(served: Running) -> str:
    found: str = httpx2.post(f"{served.url}/v1/completions", json=ASK).json()["choices"][0]["text"]
    return found


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_older_clients_are_answered(served: Running, usual: str, version: str) -> None:
    assert text(said(served, asking("Connection: close", version=version))) == usual


def test_requests_in_a_row_are_answered_in_their_order(served: Running, usual: str) -> None:
    wrong = asking(body=b"[]")
    found = said(served, asking() + wrong + asking("Connection: close"))
    answers = [b"HTTP/1.1 " + part for part in found.split(b"HTTP/1.1 ")[1:]]
    assert [status(answer) for answer in answers] == [200, 400, 200]
    assert (text(answers[0]), text(answers[2])) == (usual, usual)


def test_a_body_may_come_in_any_pieces(served: Running, usual: str) -> None:
    body = json.dumps(ASK, ensure_ascii=False).encode()
    head = ["POST /v1/completions HTTP/1.1", "Host: localhost", KIND, "Connection: close"]
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    chunked = "\r\n".join([*head, "Transfer-Encoding: chunked", "", ""]).encode() + chunks
    whole = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body
    for request in (chunked, whole):
        assert text(said(served, *(request[at : at + 7] for at in range(0, len(request), 7)))) == usual


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"x" * 100 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
        asking("Content-Length: 5"),
        asking(body=b"").replace(b"Content-Length: 0", b"Content-Length: -5"),
        asking(body=b"").replace(b"Content-Length: 0", b"Content-Length: 1" + b"0" * 30),
        asking(body=b"zz\r\n{}\r\n0\r\n\r\n").replace(b"Content-Length: 13", b"Transfer-Encoding: chunked"),
    ],
    ids=[
        "0.9",
        "TLS",
        "no host",
        "two hosts",
        "a long head",
        "two lengths",
        "less than nothing",
        "too long",
        "no chunk",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(served: Running, request_: bytes) -> None:
    assert status(said(served, request_)) in (400, 413)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "GET", "FOO"])
def test_other_methods_are_refused(served: Running, method: str) -> None:
    head = f"{method} /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status(said(served, head.encode())) == 405


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fetc", "/v1/models/x%00y", "//etc"]
)
def test_no_path_leads_out(served: Running, path: str) -> None:
    found = said(served, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status(found) == 404 and b"root:" not in found


@pytest.mark.parametrize(
    "pieces",
    [(asking(),), (asking()[:-5],), (asking(body=json.dumps({**ASK, "stream": True, "max_tokens": 500}).encode()),)],
    ids=["after its request", "in the body", "before the stream"],
)
def test_who_leaves_is_no_error_and_holds_nothing(
    served: Running, pieces: Many[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    said(served, *pieces, ends=True)
    assert httpx2.get(f"{served.url}/health").status_code == 200  # by then the server has seen that nobody is there
    until(lambda: not any(each.admission.busy for each in served.service.models))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_silent_connections_keep_nobody_out(served: Running, usual: str) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    try:
        for number, client in enumerate(silent):
            client.sendall(asking()[: number * 2])
        assert text(said(served, asking("Connection: close"))) == usual
    finally:
        for client in silent:
            client.close()
