"""`generate` on the toy: what reaches the model of a text, of stdin and of token ids."""

from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import dsv3c.runtime
from dsv3c.runtime import cli
from dsv3c.runtime.engine.generation import Event, Generation
from dsv3c.runtime.engine.params import SamplingParams


class Asked:
    """Stands for the model: keeps what it was asked, and answers with two tokens."""

    has_tokenizer = True
    context = 100
    defaults = SamplingParams()

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def stream(self, prompt: Any, add_bos: bool | None = None, **params: Any) -> list[Event]:
        self.prompt, self.add_bos = prompt, add_bos
        done = Generation("ab", (3, 4), "length", 1, 1.0, 1.0, 1)
        return [Event("a", 3), Event("b", 4), Event("", None, done)]

    def report(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(dsv3c.runtime, "load", lambda *arguments: asked)
    return asked


def generate(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    assert cli.run(["generate", "OUT", *args]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize(("args", "add_bos"), [([], None), (["--no-bos"], False)])
def test_a_text_goes_with_or_without_the_bos(
    model: Asked, capsys: pytest.CaptureFixture[str], args: list[str], add_bos: bool | None
) -> None:
    assert generate(capsys, "-p", "Hi", *args)[0] == "Hiab\n"
    assert (model.prompt, model.add_bos) == ("Hi", add_bos)


def test_a_model_without_a_tokenizer_takes_and_prints_ids(model: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    model.has_tokenizer = False
    assert generate(capsys, "--ids", "0 17,42")[0].split() == ["3", "4"]
    assert model.prompt == [0, 17, 42]
    assert json.loads(generate(capsys, "--ids", "5", "--json")[0])["token_ids"] == [3, 4]


@pytest.mark.parametrize("data", ["Größe\r\n".encode(), b"\xef\xbb\xbf" + "Größe\r\n".encode()])
def test_stdin_is_utf8_without_its_byte_order_mark(
    model: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    give_stdin(monkeypatch, data)
    generate(capsys, "-p", "-")
    assert model.prompt == "Größe\r\n"


@pytest.mark.parametrize("data", [b"a\xff", b"\xff\xfea\0"])
def test_stdin_that_is_no_utf8_is_refused(
    model: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    give_stdin(monkeypatch, data)
    assert "is not UTF-8" in generate(capsys, "-p", "-", code=1)[1]


def test_stdin_is_bounded(model: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.cli.generate.PROMPT_LIMIT", 10)
    give_stdin(monkeypatch, b"x" * 11)
    assert "more than 10 bytes" in generate(capsys, "-p", "-", code=1)[1]
