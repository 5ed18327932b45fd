"""A conversation without a terminal: what the model is asked, what becomes of its answers and its thoughts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.cli.conversation import Conversation
from dsv3c.runtime.engine.generation import Event, Generation, Task
from dsv3c.runtime.errors import ParameterInvalid, StepInvalid, UnknownParameter
from dsv3c.runtime.model import Model
from dsv3c.runtime.text.thoughts import Piece
from tests.runtime.cli.conftest import TEMPLATE, talking_toy

HOW = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 6}
FIELD = TEMPLATE + "{# reasoning_content #}"
OPENED = TEMPLATE + "<think>\n"


@pytest.fixture
def model(talking: Path) -> Iterator[Model]:
    with load(talking) as model:
        yield model


def answering(model: Model, monkeypatch: pytest.MonkeyPatch, *texts: str | Exception) -> list[Task]:
    """Lets the model answer with these pieces of text; returns the tasks that it is given then."""
    asked: list[Task] = []

    def events(task: Task) -> Iterator[Event]:
        asked.append(task)
        for text in texts:
            if isinstance(text, Exception):
                raise text
            yield Event(text, 5)
        yield Event("", None, Generation("".join(map(str, texts)), (5,) * len(texts), "stop", 3, 1.0, 1.0, 1))

    monkeypatch.setattr(model, "hand_in", events)
    return asked


def test_each_answer_is_to_all_that_was_said(model: Model) -> None:
    conversation = Conversation(model, dict(HOW), "S")
    messages = [{"role": "system", "content": "S"}]
    for text in ("ABC", "XYZ"):
        messages.append({"role": "user", "content": text})
        expected = model.generate(messages, **HOW)
        assert "".join(piece.text for piece in conversation.ask(text)) == expected.text
        messages.append({"role": "assistant", "content": expected.text})
    assert conversation.all_messages == messages
    assert conversation.last is not None and conversation.last.cached_tokens > 0
    assert conversation.tokens == [*model.encode(messages[:-1]), *conversation.last.token_ids]
    assert (conversation.totals.answers, conversation.totals.tokens) == (2, 12)


def test_a_cancelled_answer_stays_as_far_as_it_came(model: Model) -> None:
    conversation = Conversation(model, HOW | {"max_new_tokens": 40})
    pieces = conversation.ask("ABC")
    begun = next(pieces).text
    conversation.cancel()
    begun += "".join(piece.text for piece in pieces)
    assert conversation.messages == [{"role": "user", "content": "ABC"}, {"role": "assistant", "content": begun}]
    assert conversation.last is not None and conversation.last.finish_reason == "cancelled"
    assert model.engine.scheduler.idle and model.session.pool.free_pages == model.session.pool.pages


def test_an_answer_that_fails_leaves_the_conversation_as_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = Conversation(model, dict(HOW))
    list(conversation.ask("A"))
    before = list(conversation.messages), list(conversation.tokens)
    answering(model, monkeypatch, "B", StepInvalid(where="toy", reason="failed"))
    with pytest.raises(StepInvalid):
        list(conversation.ask("C"))
    assert (conversation.messages, conversation.tokens) == before


@pytest.mark.parametrize(
    ("template", "written", "message"),
    [
        (TEMPLATE, ("<think>", "so</th", "ink>\n\nHi"), {"content": "<think>so</think>\n\nHi"}),
        (FIELD, ("<think>so\n", "</think>Hi"), {"content": "Hi", "reasoning_content": "so"}),
        (FIELD, ("Hi",), {"content": "Hi"}),
        (OPENED, ("so", "</think>", "Hi"), {"content": "<think>so</think>Hi"}),
    ],
    ids=["the template cuts", "a field of their own", "no thoughts", "opened by the template"],
)
def test_thoughts_are_told_apart_and_left_to_the_template(
    tmp_path: Path, talking: Path, monkeypatch: pytest.MonkeyPatch,
    template: str, written: tuple[str, ...], message: dict[str, str],
) -> None:  # fmt: skip
    with load(talking_toy(tmp_path / "thinking", template)) as model:
        conversation = Conversation(model, {})
        answering(model, monkeypatch, *written)
        pieces = list(conversation.ask("Q"))
    thoughts = "".join(piece.text for piece in pieces if piece.thought).strip()
    assert thoughts == ("so" if len(written) > 1 else "") and pieces[-1] == Piece("Hi", False)
    assert conversation.messages[1] == {"role": "assistant", **message}


def test_tags_that_are_special_tokens_are_in_the_text(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "token_id", lambda tag: {"<think>": 1, "</think>": 0}[tag])
    conversation = Conversation(model, {})
    tasks = answering(model, monkeypatch, "Hi")
    list(conversation.ask("Q"))
    (decode,) = (task.decode for task in tasks)
    assert decode is not None and decode([1, 5, 0, 6]) == "<e>3<b>4"


def test_parameters_are_checked_as_a_whole_before_one_changes(model: Model) -> None:
    conversation = Conversation(model, {"seed": 3})
    conversation.set_parameters({"top_k": 4, "seed": None})
    for wrong, error in (({"top_k": -1}, ParameterInvalid), ({"top_k": 5, "x": 1}, UnknownParameter)):
        with pytest.raises(error):
            conversation.set_parameters(wrong)
    assert conversation.how == {"top_k": 4}


def test_messages_are_taken_up_with_the_systems(model: Model) -> None:
    conversation = Conversation(model, {}, "S")
    said = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    conversation.take_up([{"role": "system", "content": "T"}, *said])
    assert (conversation.system, conversation.messages) == ("T", said)
    conversation.take_up(said)
    assert conversation.all_messages == said
    conversation.reset()
    assert conversation.all_messages == []


def test_a_model_whose_default_is_several_answers_gives_one(model: Model) -> None:
    model.defaults = model.defaults.updated({"num_return_sequences": 3, "temperature": 1.0})
    conversation = Conversation(model, {"max_new_tokens": 6, "ignore_eos": True})
    told = "".join(piece.text for piece in conversation.ask("ABC"))
    assert conversation.last is not None and told == conversation.last.text
