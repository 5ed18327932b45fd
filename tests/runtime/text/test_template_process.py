"""The process that renders chat templates: kept, replaced, shared, and never in the way of the one that asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.text import template_process
from dsv3c.runtime.text.template_process import TemplateProcess
from tests.waiting import PATIENCE, gone, until


def request(source: str, text: str = "Hi") -> bytes:
    content = {"source": source, "messages": [{"role": "user", "content": text}], "variables": {}, "seconds": 1.0}
    return json.dumps(content).encode()


ECHO = "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def process() -> TemplateProcess:
    return TemplateProcess()


def child_of(process: TemplateProcess) -> subprocess.Popen[bytes]:
    child = process._home._child
    assert child is not None
    return child._process


def test_it_is_kept_for_the_next_text(process: TemplateProcess) -> None:
    assert process.render(request(ECHO), 1) == "Hi"
    first = child_of(process).pid
    with pytest.raises(errors.TemplateFailed):
        process.render(request("{{ 1 / 0 }}"), 1)
    assert process.render(request(ECHO, "ü" * 10**6), 1) == "ü" * 10**6
    assert child_of(process).pid == first


def test_one_that_ended_by_itself_is_replaced(process: TemplateProcess) -> None:
    process.render(request(ECHO), 1)
    child = child_of(process)
    child.kill()
    child.wait()
    assert process.render(request(ECHO), 1) == "Hi"


def test_threads_share_it(process: TemplateProcess) -> None:
    wrong: list[str] = []

    def ask(name: str) -> None:
        texts = (f"{name} {number}" for number in range(30))
        wrong.extend(text for text in texts if process.render(request(ECHO, text), 5) != text)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_fork_has_its_own(process: TemplateProcess) -> None:
    process.render(request(ECHO), 1)
    fork = os.fork()
    if fork == 0:
        code = 1
        try:
            code = 0 if process.render(request(ECHO, "fork"), 5) == "fork" else 1
        finally:
            os._exit(code)
    assert os.waitpid(fork, 0)[1] == 0
    assert process.render(request(ECHO), 1) == "Hi"


@pytest.mark.usefixtures("heeded_signals")
def test_ctrl_c_is_not_for_it_and_leaves_no_half_answer(process: TemplateProcess) -> None:
    process.render(request(ECHO), 1)
    child_of(process).send_signal(signal.SIGINT)
    assert process.render(request(ECHO), 1) == "Hi"
    endless = request("{% for a in range(99999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}")
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT)).start()
        while True:
            with suppress(errors.TemplateTooCostly):
                process.render(endless, 5)
    assert process.render(request(ECHO), 1) == "Hi"


def test_it_ends_with_its_owner() -> None:
    owner = TemplateProcess()
    owner.render(request(ECHO), 1)
    child = child_of(owner)
    del owner
    assert child.returncode == -signal.SIGKILL


def test_it_ends_with_the_process_that_asks(tmp_path: Path) -> None:
    code = f"""
import os, sys
from dsv3c.runtime.text.template_process import TemplateProcess
from tests.waiting import PATIENCE, gone, until
process = TemplateProcess()
process.render({request(ECHO)!r}, 1)
print(process._home._child._process.pid, flush=True)
os._exit(0)  # no finaliser runs
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    until(lambda: gone(int(done.stdout)))


def test_memory_is_watched_where_the_system_sets_no_limit(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "_resident_bytes", lambda pid: template_process.MEMORY + 1)
    with pytest.raises(errors.TemplateTooCostly, match="MB of memory"):
        process.render(request(ECHO), 5)


def test_a_text_that_no_model_holds_is_refused_at_once(process: TemplateProcess) -> None:
    with pytest.raises(errors.MessagesInvalid, match="bytes"):
        process.render(bytes(template_process._REQUEST_LIMIT + 1), 1)


@pytest.mark.parametrize("python", ["/bin/false", "/nonexistent/python"])
def test_without_a_python_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    monkeypatch.setenv("DSV3C_PYTHON", python)
    with pytest.raises(errors.TemplateProcessMissing, match="DSV3C_PYTHON"):
        TemplateProcess().render(request(ECHO), 1)


def test_a_program_that_python_is_embedded_in_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert TemplateProcess().render(request(ECHO), 1) == "Hi"
    assert not (tmp_path / "ran").exists()


def test_a_path_that_cannot_be_looked_at_is_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/server")
    monkeypatch.setattr(sys, "prefix", "/" + "x" * 5000)  # stat() fails, not with "no such file"
    assert TemplateProcess().render(request(ECHO), 1) == "Hi"
