"""Responses are kept as long as there is room for them."""

from __future__ import annotations

from dsv3c.runtime.server.remembered import Kept, Remembered


def kept(name: str, size: int = 1) -> Kept:
    return Kept({"id": name}, ({"role": "user", "content": "x" * size},))


def test_those_that_were_not_used_for_longest_give_way() -> None:
    remembered = Remembered(most=2)
    for name in ("a", "b"):
        remembered.keep(kept(name))
    assert remembered.find("a") is not None
    remembered.keep(kept("c"))
    assert [remembered.find(name) is not None for name in ("a", "b", "c")] == [True, False, True]


def test_so_many_characters_and_no_more() -> None:
    remembered = Remembered(characters=1000)
    for name in ("a", "b", "c"):
        remembered.keep(kept(name, 500))
    assert [remembered.find(name) is not None for name in ("a", "b", "c")] == [False, False, True]
    remembered.keep(kept("large", 2000))
    assert remembered.find("large") is None and remembered.find("c") is not None


def test_what_is_forgotten_is_gone() -> None:
    remembered = Remembered()
    remembered.keep(kept("a"))
    assert remembered.forget("a") and not remembered.forget("a") and remembered.find("a") is None
