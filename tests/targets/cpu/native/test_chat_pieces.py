"""What is found of a chat template by rendering it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dsv3c.targets.cpu.native.chat_pieces import ChatPieces, chat_pieces
from tests.targets.cpu.native import templates

CONFIG = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}


def found(folder: Path, template: str) -> ChatPieces:
    return chat_pieces(folder, {**CONFIG, "chat_template": template})


def test_a_template_that_joins_texts_is_its_pieces(bundled_model: Path) -> None:
    pieces = found(bundled_model, templates.PLAIN)
    assert pieces == ChatPieces(
        head="<｜begin▁of▁sentence｜>User: ",
        system_head="<｜begin▁of▁sentence｜>",
        system_tail="\n\nUser: ",
        tail="\n\nAssistant:",
        user_tail="\n\nAssistant: ",
        assistant_tail="<｜end▁of▁sentence｜>User: ",
    )


def test_a_text_for_chats_without_a_system_is_a_piece(bundled_model: Path) -> None:
    pieces = found(bundled_model, templates.WITH_DEFAULT)
    assert pieces.head == "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"
    assert (pieces.system_head, pieces.lacks) == ("<|im_start|>system\n", "")


def test_where_a_system_is_refused_the_rest_is_there(bundled_model: Path) -> None:
    pieces = found(bundled_model, templates.NO_SYSTEM)
    assert (pieces.system_head, pieces.system_tail, pieces.lacks) == (None, None, "")
    assert pieces.user_tail == "<|im_end|>\n<|im_start|>assistant\n"


def test_answers_that_are_changed_leave_one_question(bundled_model: Path) -> None:
    pieces = found(bundled_model, templates.WITHOUT_THOUGHTS)
    assert (pieces.head, pieces.user_tail) == ("<｜begin▁of▁sentence｜>User: ", None)
    assert pieces.lacks == "the chat template does more than join texts where a conversation has answers"


@pytest.mark.parametrize(
    ("template", "lacks"),
    [
        (templates.TRIMMED, "the chat template does more than join texts"),
        (templates.DATED, "the chat template writes the date"),
        ("{{ nonsense", "the chat template cannot be used: chat template: unexpected end of template"),
        ("no texts", "the chat template does more than join texts"),
    ],
    ids=["trimmed", "dated", "broken", "without texts"],
)
def test_other_templates_are_none(bundled_model: Path, template: str, lacks: str) -> None:
    pieces = found(bundled_model, template)
    assert pieces.head is None
    assert pieces.lacks.startswith(lacks)


def test_what_depends_on_the_number_of_messages_leaves_one_question(bundled_model: Path) -> None:
    pieces = found(bundled_model, templates.COUNTED)
    assert (pieces.head, pieces.user_tail) == ("[1]<｜begin▁of▁sentence｜>User: ", None)


def test_without_a_template_or_a_tokenizer_there_is_no_chat(bundled_model: Path, tmp_path: Path) -> None:
    assert chat_pieces(bundled_model, CONFIG).lacks == "the checkpoint has no chat template"
    assert chat_pieces(tmp_path, {}).lacks.startswith("this model was compiled without a tokenizer")


def test_the_file_goes_before_the_config(bundled_model: Path, tmp_path: Path) -> None:
    shutil.copy(bundled_model / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(templates.WITH_DEFAULT, encoding="utf-8")
    assert found(tmp_path, templates.PLAIN).tail == "<|im_end|>\n<|im_start|>assistant\n"
