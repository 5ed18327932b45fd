"""Recipes cut along their first axis: what an expert's weights are made of, apart from those of the others.

A recipe over stacked experts (a param with `*` in its name) becomes one recipe an expert, so that memory is bounded by
the largest single tensor and not by a layer's experts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType, Value, topological_order


@dataclass(frozen=True)
class Piece:
    """Part `index` of `count` of the weight `recipe`, computed by `value`."""

    recipe: str
    value: Value
    index: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.recipe}#{self.index}"


def pieces(recipe: str, value: Value) -> Iterator[Piece]:
    """A recipe whole, or cut along its first axis when it holds stacked experts."""
    if not any(map(is_stacked, topological_order([value]))):
        yield Piece(recipe, value, 0, 1)
        return
    count = int(value.shape[0])
    for index in range(count):
        yield Piece(recipe, part(value, index), index, count)


def is_stacked(value: Value) -> bool:
    """A param that holds all experts, one tensor of the checkpoint each, and has not been cut yet."""
    return value.op == "param" and "*" in str(value.attrs["name"]) and "expert" not in value.attrs


def part(value: Value, index: int) -> Value:
    """The recipe of value[index], pushed towards the leaves so that only what it needs is read."""
    rule = _PART_RULES.get(value.op)
    pushed = rule(value, index) if rule else None
    return _cut(value, 0, index) if pushed is None else pushed


def _cut(value: Value, axis: int, index: int) -> Value:
    """value with `axis` reduced to `index` and dropped, computed from the whole value."""
    one = ops.apply("slice", (value,), {"axis": axis, "start": index, "stop": index + 1})
    return ops.apply("reshape", (one,), {"shape": value.shape[:axis] + value.shape[axis + 1 :]})


def _part_param(value: Value, index: int) -> Value | None:
    if not is_stacked(value):
        return None
    return Value("param", (), {**value.attrs, "expert": index}, TensorType(value.dtype, value.shape[1:]))


def _part_concat(value: Value, index: int) -> Value | None:
    axis = int(value.attrs["axis"]) % len(value.shape)  # type: ignore[arg-type]
    if axis != 0:
        return ops.apply("concat", tuple(part(source, index) for source in value.inputs), {"axis": axis - 1})
    for source in value.inputs:
        size = int(source.shape[0])
        if index < size:
            return part(source, index)
        index -= size
    return None


def _part_reshape(value: Value, index: int) -> Value | None:
    (source,) = value.inputs
    if source.shape[0] == value.shape[0]:
        return ops.apply("reshape", (part(source, index),), {"shape": value.shape[1:]})
    return None


def _part_transpose(value: Value, index: int) -> Value | None:
    (source,) = value.inputs
    lead, *rest = map(int, value.attrs["axes"])  # type: ignore[arg-type]
    inner = part(source, index) if lead == 0 else _cut(source, lead, index)
    kept = tuple(axis - (axis > lead) for axis in rest)
    return ops.apply("transpose", (inner,), {"axes": kept})


def _part_elementwise(value: Value, index: int) -> Value | None:
    """quantize and pack look at the last two axes only."""
    return ops.apply(value.op, (part(value.inputs[0], index),), value.attrs) if len(value.shape) > 2 else None


_PART_RULES: Mapping[str, Callable[[Value, int], Value | None]] = {
    "param": _part_param,
    "concat": _part_concat,
    "reshape": _part_reshape,
    "transpose": _part_transpose,
    "quantize": _part_elementwise,
    "pack": _part_elementwise,
}
