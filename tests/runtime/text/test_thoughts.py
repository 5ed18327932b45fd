"""Thoughts are told apart from the answer, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from dsv3c.runtime.text.thoughts import ThoughtFilter


def told(text: str, opened: bool, size: int) -> tuple[str, str]:
    """Thoughts and answer of a text in pieces of that size."""
    thoughts = ThoughtFilter(opened)
    pieces = [piece for i in range(0, len(text), size) for piece in thoughts.push(text[i : i + size])]
    pieces += thoughts.flush()
    assert all(piece.text for piece in pieces)
    order = [piece.thought for piece in pieces]
    assert order == sorted(order, reverse=True), "thoughts come first"
    return tuple("".join(p.text for p in pieces if p.thought is thought) for thought in (True, False))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("text", "opened", "thoughts", "answer"),
    [
        ("  plain <think> text", False, "", "  plain <think> text"),
        ("<think>\nso </thin it</think>\n\nHi <think>", False, "so </thin it", "Hi <think>"),
        (" \n<think></think>Hi", False, "", "Hi"),
        ("so it</think>Hi</think>", True, "so it", "Hi</think>"),
        ("without an end </thin", True, "without an end </thin", ""),
        ("<thin", False, "", "<thin"),
        ("<thinner", False, "", "<thinner"),
        ("", False, "", ""),
    ],
)
def test_thoughts_and_answer(text: str, opened: bool, thoughts: str, answer: str, size: int) -> None:
    assert told(text, opened, size) == (thoughts, answer)


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    thoughts = ThoughtFilter(opened=False)
    assert [thoughts.push(text) for text in ("<thi", "nk>a", "b<", "c", "</think>", "d")] == [
        [], [("a", True)], [("b", True)], [("<c", True)], [], [("d", False)],
    ]  # fmt: skip
