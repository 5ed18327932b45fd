"""Chats in C against the Python runtime."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dsv3c.runtime.text.tokenizer import Tokenizer
from dsv3c.targets.cpu import native
from dsv3c.targets.cpu.native import tables
from dsv3c.targets.cpu.native.chat_pieces import chat_pieces
from tests.targets.cpu.native import templates
from tests.targets.cpu.native.binding import Failure, Library, Model, TextModel

TEXTS = (" Why <b>is</b> it? ", "", "größer\n\n", "<｜end▁of▁sentence｜>", "{{ 1 + 1 }}", "a</think>b", "'s\t")


def config(folder: Path, template: str) -> dict[str, object]:
    content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return content | {"chat_template": template}


def constants(folder: Path, template: str) -> str:
    """What the compiler makes of a template."""
    return tables.chat_constants(chat_pieces(folder, config(folder, template)))


def chats(folder: Path, template: str, out: Path) -> TextModel:
    """The part of the library that chats, alone: a model is not looked at."""
    plan = out.with_suffix(".c")
    plan.write_text(f'#include "plan.h"\nconst plan_table dsv3c_plan = {{.chat = {constants(folder, template)}}};')
    files = [plan, *(native.SOURCES / name for name in ("chat.c", "error.c"))]
    subprocess.run(["cc", "-std=c11", "-shared", "-fPIC", "-I", native.SOURCES, "-o", out, *files], check=True)
    return TextModel(Library(out), ctypes.c_void_p(1))


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return chats(folder, templates.PLAIN, tmp_path_factory.mktemp("chat") / "plain.so")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder / "tokenizer.json", config(folder, templates.PLAIN))


@pytest.mark.parametrize("system", [None, "Be short.", " \n"])
@pytest.mark.parametrize("questions", [1, 2, 4])
def test_tokens_are_those_of_the_python_runtime(
    plain: TextModel, model: Model, tokenizer: Tokenizer, questions: int, system: str | None
) -> None:
    for first in range(len(TEXTS)):
        turns = [TEXTS[(first + i) % len(TEXTS)] for i in range(2 * questions - 1)]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        begin = [] if system is None else [{"role": "system", "content": system}]
        rendered = plain.chat(turns, system)
        assert rendered == tokenizer.render_chat([*begin, *messages])
        assert model.encode(rendered, special=False) == tokenizer.encode_chat([*begin, *messages])


def test_the_program_chats(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    plan = copy / "native" / "src" / "plan.c"
    text, chat = plan.read_text(encoding="utf-8"), constants(folder, templates.PLAIN)
    plan.write_text(re.sub(r"\.chat = .*", lambda _: f".chat = {chat},", text), encoding="utf-8")
    native.build(plan.parent, copy / "native")
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}]
    options = ["--chat", "--system", "Be short.", "-p", "Who?", "-n", "3", "--seed", "1"]
    program = [str(copy / "native" / "dsv3c-run"), *options]
    report = json.loads(subprocess.run([*program, "--json"], capture_output=True, check=True).stdout)
    assert report["prompt_ids"] == tokenizer.encode_chat(messages)
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert printed == tokenizer.decode(report["token_ids"]) + "\n"


def test_conversations_begin_and_end_with_the_user(plain: TextModel) -> None:
    for turns in ([], ["a", "b"]):
        with pytest.raises(Failure, match="BAD_ARGUMENT: a conversation needs the user's text first and last"):
            plain.chat(turns)
    with pytest.raises(Failure, match="BAD_ARGUMENT: an empty text of the system"):
        plain.chat(["a"], "")


def test_what_a_template_has_no_form_for_is_refused(folder: Path, tmp_path: Path) -> None:
    one = chats(folder, templates.WITHOUT_THOUGHTS, tmp_path / "one.so")
    assert one.chat(["a</think>b"]).endswith("User: a</think>b\n\nAssistant:")
    with pytest.raises(Failure, match="NO_CHAT_TEMPLATE: the chat template does more than join texts where a conv"):
        one.chat(["a", "b", "c"])
    alone = chats(folder, templates.NO_SYSTEM, tmp_path / "alone.so")
    with pytest.raises(Failure, match="NO_CHAT_TEMPLATE: the chat template takes no text of the system as it is"):
        alone.chat(["a"], "b")


def test_a_model_without_a_template_says_so(model: Model, folder: Path) -> None:
    assert not model.info.has_chat_template
    with pytest.raises(Failure, match="NO_CHAT_TEMPLATE: the checkpoint has no chat template"):
        model.chat(["a"])
    program = [str(folder / "native" / "dsv3c-run"), "--chat", "-p", "a"]
    done = subprocess.run(program, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"dsv3c-run: the checkpoint has no chat template\n"


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (templates.PLAIN, ()),
        (templates.TRIMMED, ("native: has no chats, since the chat template does more than join texts",)),
        (
            templates.WITHOUT_THOUGHTS,
            (
                "native: has chats of one question alone, since the chat template does more than join texts where a "
                "conversation has answers",
            ),
        ),
    ],
    ids=["plain", "trimmed", "without thoughts"],
)
def test_the_compiler_says_what_a_program_cannot(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, note: tuple[str, ...]
) -> None:
    monkeypatch.setattr(native, "build", lambda *_: None)
    monkeypatch.setattr(native, "tokenizer_table", lambda *_: b"")
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("native")))
    (copy / "tokenizer_config.json").write_text(json.dumps(config(folder, template)), encoding="utf-8")
    assert native.write_native(copy) == note
