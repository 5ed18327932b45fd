"""`chat` through a pipe and in a terminal, on the toy."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.cli import chat
from dsv3c.runtime.text.thoughts import Piece
from tests.conftest import TESTS, heed_signals
from tests.runtime.cli.conftest import Run, talking_toy
from tests.runtime.cli.test_sessions import PROGRAM
from tests.waiting import PATIENCE, until

GREEDY = ("--temperature", 0, "--ignore-eos", "-n", 4)
Talk = Callable[..., tuple[str, str]]


def reader(*lines: str) -> tuple[chat.Reader, list[bool]]:
    """Gives lines, and notes whether each goes on with a text."""
    left, asked = iter(lines), list[bool]()

    def read(continued: bool) -> str | None:
        asked.append(continued)
        return next(left, None)

    return read, asked


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a", " b ", "", "  "], ["a", " b "]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (["a\\"], ["a"]),
        (['"""', "a", "", 'b"', '"""', "c"], ['a\n\nb"', "c"]),
        (['"""a', 'b"""', "c"], ["a\nb", "c"]),
        (['"""a"""', "b"], ["a", "b"]),
        (['"""', "a"], ["a"]),
        (["a", "/quit", "b"], ["a"]),
    ],
)
def test_what_is_said_may_have_many_lines(lines: list[str], said: list[str]) -> None:
    assert list(chat.messages(reader(*lines)[0])) == said


def test_a_line_that_goes_on_is_asked_for_as_such() -> None:
    read, asked = reader("a\\", "b", '"""', "c", '"""')
    assert list(chat.messages(read)) == ["a\nb", "c"]
    assert asked == [False, True, False, True, True, False]


def test_ctrl_c_drops_what_is_typed_and_leaves_when_it_comes_twice(capsys: pytest.CaptureFixture[str]) -> None:
    script: Iterator[str | None] = iter(["a\\", None, "b", None, None, "c"])

    def read(continued: bool) -> str:
        line = next(script)
        if line is None:
            raise chat.Dropped
        return line

    assert list(chat.messages(read)) == ["b"]
    assert next(script) == "c"
    assert capsys.readouterr().err.count("once more") == 2


def test_thoughts_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(chat, "echo", lambda text, nl=True: shown.append(text + "\n" * nl))
    monkeypatch.delenv("NO_COLOR", raising=False)
    pieces = [Piece("so", True), Piece(" it", True), Piece("Hi", False), Piece("!", False)]
    for terminal, told, expected in (
        (False, pieces, "<think>\nso it\n</think>\nHi!\n"),
        (True, pieces, "\x1b[2mso it\x1b[0m\nHi!\n"),
        (True, pieces[:1], "\x1b[2mso\x1b[0m\n"),
    ):
        shown.clear()
        chat.Screen(terminal).show(told)
        assert "".join(shown) == expected


@pytest.fixture
def talk(talking: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Talk:
    def command(*said: str, args: tuple[object, ...] = GREEDY, code: int = 0) -> tuple[str, str]:
        data = "".join(f"{line}\n" for line in said).encode("utf-8", "surrogateescape")
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
        return run("chat", talking, *args, code=code)

    return command


def test_a_pipe_gets_the_answers_alone(talk: Talk, talking: Path) -> None:
    out, err = talk("ABC", "XY\\", "Z")
    with load(talking) as model:
        how = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
        messages = [{"role": "user", "content": "ABC"}]
        first = model.generate(messages, **how).text
        messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "XY\nZ"}]
        second = model.generate(messages, **how).text
    assert out == f"{first}\n{second}\n"
    assert err == "(max_new_tokens are reached)\n" * 2


def test_the_next_answer_takes_up_what_is_cached(talk: Talk) -> None:
    _, err = talk("ABCDEFGH", "X", "/stats")
    assert "conversation   4 messages" in err and "answers        2, 8 tokens" in err
    assert "cached tokens  8 of " in err or "cached tokens  12 of " in err


def test_commands_over_the_conversation(talk: Talk, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    talk("/system S", "A", "/reset", "B", f"/save {file}", "//C", f"/save {tmp_path / 'more.json'}")
    said = json.loads(file.read_text())
    assert [(each["role"], each["content"]) for each in said[:2]] == [("system", "S"), ("user", "B")]
    assert [each["role"] for each in said] == ["system", "user", "assistant"]
    assert json.loads((tmp_path / "more.json").read_text())[3]["content"] == "/C"
    _, err = talk(f"/load {file}", "/stats", "/help")
    assert "loaded 3 messages" in err and "2 messages" in err and "/params [NAME=VALUE]" in err


@pytest.mark.parametrize("name", ["said.json", "said"])
def test_a_saved_conversation_goes_on_after_a_restart(talk: Talk, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    whole, _ = talk("ABCDEFGH", f"/save {file}", "X")
    begun, _ = talk("ABCDEFGH")
    rest, err = talk("X", "/stats", args=("--load", file, *GREEDY))
    assert begun + rest == whole
    assert "loaded 2 messages" in err
    assert ("cached tokens  0 of" in err) == (name == "said.json")  # messages alone have no pages


def test_parameters_are_set_and_taken_back(talk: Talk) -> None:
    lines = ("/params", "/params top_k=3 stop='X Y'", "/params top-k=", "/params bad_words=Q stop=")
    _, err = talk(*lines, "A", args=("--temperature", 0.5))
    blocks = err.split("temperature")
    assert blocks[1].split() == ["0.5"]
    assert blocks[2].split() == ["0.5", "top_k", "3", "stop", "X", "Y"]
    assert blocks[3].split() == ["0.5", "stop", "X", "Y"]
    assert blocks[4].split()[:3] == ["0.5", "bad_words", "['Q']"]


def test_what_is_wrong_is_told_and_the_chat_goes_on(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    wrong = [
        "/params top_p=9", "/params x=1", "/params y", "/params num_return_sequences=2", "/params bad_words=3",
        '/params "', "/foo", "/save", "/load", f"/load {tmp_path / 'none'}", f"/load {tmp_path / 'list.json'}",
        f"/save {tmp_path / 'no' / 'x.json'}",
    ]  # fmt: skip
    out, err = talk(*wrong, "A", code=1)
    assert err.count("error: ") == err.count("hint: ") == 12
    assert len(out.splitlines()) == 1, "the last line has an answer"


def test_a_conversation_that_outgrows_the_context_says_what_to_do(talk: Talk) -> None:
    out, err = talk("A" * 30, "B" * 40, "C" * 5, code=1)
    assert "the conversation has 80 tokens, the context holds 64" in err
    assert "/reset begins anew" in err and "overflow=slide" in err
    assert len(out.splitlines()) == 2, "what did not fit is no part of it, and a shorter one is answered"
    _, err = talk("A" * 50, args=("--temperature", 0, "--ignore-eos"))
    assert "note: the context of 64 tokens is full: /reset begins anew" in err
    _, err = talk("A" * 30, "B" * 40, args=(*GREEDY, "--overflow", "slide"))
    assert "note: the window of 64 tokens slid" in err


def test_bytes_that_are_no_utf8_are_replaced(talk: Talk) -> None:
    assert len(talk("A\udcff", "Größe")[0].splitlines()) == 2


def test_a_model_that_cannot_chat_is_told_to_generate(tmp_path: Path, talking: Path, run: Run) -> None:
    plain = talking_toy(tmp_path / "plain", template=None)
    err = run("chat", plain, code=1)[1]
    assert "no chat template" in err and "dsv3c generate OUT -p TEXT" in err


class Terminal:
    """The program in a terminal, as a person has it."""

    def __init__(self, *args: object) -> None:
        pty = pytest.importorskip("pty")
        self._master, slave = pty.openpty()
        self._shown = b""
        environment = {**os.environ, "TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0"}
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, args)], stdin=slave, stdout=slave, stderr=slave, cwd=TESTS.parent, env=environment,
            start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = PATIENCE) -> str:
        """What it shows up to the end of this text, since the last time."""
        end = time.monotonic() + seconds
        while text.encode() not in self._shown:
            assert time.monotonic() < end, self._shown.decode()
            if select.select([self._master], [], [], 0.1)[0]:
                self._shown += os.read(self._master, 4096)
        before, mark, self._shown = self._shown.partition(text.encode())
        return (before + mark).decode()

    def interrupt(self, text: str) -> None:
        """Ctrl-C until the text comes: a signal that finds readline busy is noted, and heeded with the next one
        (readline_until_enter_or_signal in CPython). Once it has shown a key it does nothing but wait for another."""
        self.type("x")
        self.until("x")
        until(self._waits)
        for _ in range(5):
            self.type("\x03")
            with suppress(AssertionError):
                self.until(text, 15)
                return
        raise AssertionError(self._shown.decode())

    def _waits(self) -> bool:
        """Whether it sleeps, where the system tells."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def _take_terminal() -> None:
    import fcntl
    import termios

    heed_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_an_answer_and_twice_the_program(talking: Path) -> None:
    terminal = Terminal("chat", talking, "--ignore-eos", "--overflow", "slide", "-n", 10**9)
    try:
        terminal.until("/help lists the commands")
        terminal.until("> ")
        terminal.type("ABÖ\n")
        terminal.until("ABÖ\r\n")
        terminal.until("A")  # an answer without an end
        terminal.type("\x03")
        terminal.until("(stopped)")
        terminal.until("> ")
        terminal.type("/stats\n")
        assert "2 messages" in terminal.until("finish_reason cancelled")
        terminal.until("> ")
        terminal.interrupt("Ctrl-C once more")
        terminal.until("> ")
        terminal.interrupt("\r\n")
        assert terminal.process.wait(PATIENCE) == 0
    finally:
        terminal.close()
