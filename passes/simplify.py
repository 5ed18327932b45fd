"""simplify: remove operations that do nothing and join chains of views.

    %2: f32[T, 4, 8] = reshape(%1) {"shape": ["T", 32]} of reshape(%0)      ->  one reshape of %0
    %2: f32[T, 8] = slice(%1) {"start": 2, "stop": 10} of slice(%0)         ->  one slice of %0
    reshape to the same shape, slice of everything, product with 1          ->  the operand

Equal subexpressions are one value already (values compare by structure), and what no result reads does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value


@dataclass(frozen=True)
class Simplify:
    name: ClassVar[str] = "simplify"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        count = 0

        def visit(value: Value, _: Value) -> Value:
            nonlocal count
            simpler = _RULES[value.op](value) if value.op in _RULES else value
            count += simpler is not value
            return simpler

        return graph.map(visit), count


def _reshape(value: Value) -> Value:
    (x,) = value.inputs
    source = x.inputs[0] if x.op == "reshape" else x
    if source.type == value.type:
        return source
    return value if source is x else ops.apply("reshape", (source,), value.attrs)


def _slice(value: Value) -> Value:
    (x,) = value.inputs
    if x.type == value.type:
        return x
    same_axis = x.op == "slice" and x.attrs["axis"] == value.attrs["axis"]
    if not same_axis or x.attrs.get("step", 1) != 1:
        return value
    offset = _int(x, "start")
    moved = {"start": offset + _int(value, "start"), "stop": offset + _int(value, "stop")}
    return ops.apply("slice", x.inputs, {**value.attrs, **moved})


def _mul(value: Value) -> Value:
    for x, factor in (value.inputs, value.inputs[::-1]):
        if factor.op == "const" and factor.attrs["data"] == 1.0 and x.type == value.type:
            return x
    return value


def _int(value: Value, attr: str) -> int:
    number = value.attrs[attr]
    assert isinstance(number, int)
    return number


_RULES = {"reshape": _reshape, "slice": _slice, "mul": _mul}
