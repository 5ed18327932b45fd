"""Conversations in files: one process begins, another goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TESTS
from tests.runtime import toy
from tests.runtime.cli.conftest import Run, talking_toy

PROGRAM = [sys.executable, "-m", "tests.runtime.cli.toy_program"]


def process(*args: object) -> dict[str, Any]:
    done = subprocess.run([*PROGRAM, *map(str, args)], capture_output=True, text=True, check=True, cwd=TESTS.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_another_process_goes_on_with_a_text(talking: Path, run: Run, tmp_path: Path) -> None:
    how = ("--temperature", 0, "--ignore-eos", "--json")
    file = tmp_path / "text.session"
    first = json.loads(run("generate", talking, "-p", "ABCDEFG", "-n", 10, *how, "--session", file)[0])
    second = process("generate", talking, "-p", "XYZ", "-n", 8, *how, "--session", file)
    whole = [0, *range(19, 26), *first["token_ids"], *range(42, 45)]
    assert (second["prompt_tokens"], second["cached_tokens"]) == (len(whole), 16)
    alone = json.loads(run("generate", talking, "--ids", " ".join(map(str, whole)), "-n", 8, *how)[0])
    assert alone["cached_tokens"] == 0 and alone["token_ids"] == second["token_ids"]


def test_a_chat_goes_on_with_what_was_said(talking: Path, run: Run, tmp_path: Path) -> None:
    args = ("generate", talking, "--chat", "--session", tmp_path / "chat", "--temperature", 0, "-n", 5, "--json")
    first = json.loads(run(*args, "-p", "ABCDEFG")[0])
    second = json.loads(run(*args, "-p", "XYZ")[0])
    assert second["prompt_tokens"] == 1 + 9 + (len(first["text"]) + 2) + 5
    assert second["cached_tokens"] >= 8  # the full pages of what the template wrote for the first


def test_sessions_that_do_not_fit_are_refused(talking: Path, run: Run, tmp_path: Path) -> None:
    args = ("generate", talking, "-n", 2, "-p", "AB", "--session")
    text, chat = tmp_path / "text", tmp_path / "chat"
    run(*args, text)
    run(*args, chat, "--chat")
    before = text.read_bytes()
    assert f"{text} holds a text, not a chat" in run(*args, text, "--chat", code=1)[1]
    assert f"{chat} holds a chat, not a text" in run(*args, chat, code=1)[1]
    other = talking_toy(tmp_path / "other", template=None)
    weights = toy.weights_bytes({"scale": np.full(1, 2, np.float32)})
    (other / "weights.safetensors").write_bytes(weights)
    toy.refresh(other, "weights.safetensors")
    assert "was saved with another artifact" in run("generate", other, "-p", "A", "--session", text, code=1)[1]
    assert text.read_bytes() == before


def test_a_place_for_no_session_is_refused_before_anything_is_generated(
    talking: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "letter").write_text("Dear")
    args = ("generate", talking, "-p", "AB", "--session")
    for place in (tmp_path / "letter", tmp_path / "nowhere" / "file"):
        out, err = run(*args, place, code=1)
        assert out == "" and str(place) in err
    assert (tmp_path / "letter").read_text() == "Dear"


@pytest.mark.parametrize("args", [("-p", "A", "-p", "B"), ("--prompts", "x"), ("-p", "A", "--num-return-sequences", 2)])
def test_a_session_goes_on_with_one_answer(run: Run, args: tuple[object, ...]) -> None:
    assert "--session goes on with one answer" in run("generate", "OUT", "--session", "x", *args, code=2)[1]
