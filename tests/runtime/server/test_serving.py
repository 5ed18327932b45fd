"""The process: it listens, says so, and ends as it is told to."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from dsv3c.runtime.errors import DeviceNotChosen
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.serving import AddressTaken, Server, config, listen, serve
from dsv3c.runtime.server.settings import Settings
from tests.conftest import heed_signals
from tests.waiting import PATIENCE, until

STREAM: Any = {"messages": [{"role": "user", "content": "my secret words"}], "ignore_eos": True, "stream": True}
_LISTENING = re.compile(r"listening on (http://127\.0\.0\.1:\d+)")


@dataclass
class Program:
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, sign: str) -> str:
        found = lambda: [line for line in self.lines if sign in line]  # noqa: E731
        until(lambda: found() or self.process.poll() is not None)
        assert found(), self.lines
        return found()[0]

    def ended(self) -> int:
        """Its exit code, when all its lines are there."""
        self._reader.join(PATIENCE)
        return self.process.wait(PATIENCE)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())


Start = Callable[..., Program]


@pytest.fixture
def start(tiny: Path) -> Iterator[Start]:
    programs = []

    def begin(*args: str, **environment: str) -> Program:
        command = [sys.executable, "-m", "dsv3c.runtime", "serve", str(tiny), "--port", "0", "-j", "1", *args]
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, preexec_fn=heed_signals
        )
        program = Program(process)
        programs.append(program)
        program.until("loaded in")
        match = _LISTENING.search(program.until("listening on"))
        assert match is not None
        program.url = match[1]
        return program

    yield begin
    for program in programs:
        program.process.kill()
        program.process.wait()


def test_sigterm_lets_what_runs_finish_and_ends_without_an_error(start: Start) -> None:
    program = start("--grace", str(PATIENCE), DSV3C_API_KEY="key-1")
    key = {"Authorization": "Bearer key-1"}
    body = {**STREAM, "max_tokens": 400}

    def refuses() -> bool:
        try:
            return httpx2.get(f"{program.url}/health").status_code != 200
        except httpx2.HTTPError:
            return True

    with httpx2.stream("POST", f"{program.url}/v1/chat/completions", json=body, headers=key) as answer:
        lines = answer.iter_lines()
        next(lines)
        program.process.send_signal(signal.SIGTERM)
        until(refuses)
        found = [line for line in lines if line]
    assert found[-1] == "data: [DONE]" and '"finish_reason":"length"' in found[-2]
    assert program.ended() == 0
    log = "\n".join(program.lines)
    assert "POST /v1/chat/completions 200" in log and "secret" not in log and "key-1" not in log
    assert "grace" not in log


def test_ctrl_c_ends_it_after_what_finishes_in_time(start: Start) -> None:
    program = start("--grace", "0.2", "--log-json")
    with httpx2.stream("POST", f"{program.url}/v1/chat/completions", json=STREAM) as answer:
        next(answer.iter_lines())
        program.process.send_signal(signal.SIGINT)
        assert program.ended() == 0
    for line in program.lines:
        assert {"time", "level"} <= set(json.loads(line))


CUT_OFF = "0.1 s of grace are over: the server leaves, 2 requests are cut off"


@pytest.mark.parametrize(("running", "told"), [(2, [CUT_OFF]), (0, [])])
def test_what_the_end_of_the_grace_cuts_off_is_one_line_of_the_log(
    running: int, told: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def until_all_are_gone(self: Any, sockets: Any) -> None:
        await asyncio.sleep(0.2)

    monkeypatch.setattr("uvicorn.Server.shutdown", until_all_are_gone)
    settings = Settings(artifacts=(tiny,), grace=0.1)
    server = Server(config(Starlette(), settings), Models(settings), settings.grace)
    server.server_state.tasks = {object() for _ in range(running)}  # type: ignore[misc]
    server.handle_exit(signal.SIGTERM, None)
    asyncio.run(server.shutdown())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("dsv3c")] == told


def test_an_address_that_cannot_be_had_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressTaken, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use\n"):
            listen("127.0.0.1", port)
    with pytest.raises(AddressTaken, match=r"no\.such\.host\.invalid port 0: \w.*\n"):
        listen("no.such.host.invalid", 0)


def test_the_reason_is_that_of_the_system_however_python_words_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_server(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EACCES, "refused when it tried to bind to 127.0.0.1 port 80")

    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(AddressTaken, match=r"cannot listen on 127\.0\.0\.1 port 80: Permission denied\n"):
        listen("127.0.0.1", 80)


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.server.logs.set_up", lambda as_json: None)
    with pytest.raises(DeviceNotChosen, match="--device is '9'"):
        serve(Settings(artifacts=(tiny,), port=0, device="9"))
