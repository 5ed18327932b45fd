from __future__ import annotations

from dsv3c.targets.calls.recipes import joined_name


def test_joined_names() -> None:
    assert joined_name(["a.b.weight"]) == "a.b.weight"
    assert joined_name(["a.gate.weight", "a.up.weight", "a.gate.weight"]) == "a.{gate,up}.weight"
    assert joined_name(["a.x.1.w", "a.y.w"]) == "a.{x.1,y}.w"
