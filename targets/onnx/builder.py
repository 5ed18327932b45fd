"""Nodes and initialisers of one ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType, Value
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.core.storage import Component, components, tensor_name
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.recipes import Recipes

OPSET, CONTRIB = 23, "com.microsoft"
ELEMENTS: Mapping[str, int] = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "i32": TensorProto.INT32,
    "i64": TensorProto.INT64,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
_NUMPY = {"f32": np.float32, "f16": np.float16, "i64": np.int64}


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the weights file: its recipe's name there, its format, and its components by role."""

    name: str
    format: WeightFormat
    components: Mapping[str, Component]


@dataclass(frozen=True)
class Reference:
    """An initialiser whose bytes are `nbytes` at `offset` of the stored tensor `tensor`."""

    name: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return Component("", self.dtype, self.shape).nbytes


@dataclass
class Builder:
    """dtype: IR name of the element type of activations. Values are known by their ONNX name."""

    dtype: str
    recipes: Recipes
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    _memo: dict[Any, str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def node(self, op: str, *inputs: str, domain: str = "", out: str | None = None, **attrs: Any) -> str:
        """Append a node with one result; the name of the result."""
        return self.nodes_out(op, inputs, [out or self._fresh(op)], domain, **attrs)[0]

    def split(self, x: str, count: int, axis: int) -> list[str]:
        """`count` equal parts of x along `axis`."""
        names = [self._fresh("Split") for _ in range(count)]
        return self.nodes_out("Split", (x,), names, axis=axis, num_outputs=count)

    def nodes_out(
        self, op: str, inputs: Sequence[str], outputs: list[str], domain: str = "", **attrs: Any
    ) -> list[str]:
        name = f"/{outputs[0]}"
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name, domain=domain, **attrs))
        return outputs

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """The value for `key`, made when first asked for."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def const(self, data: Any, dtype: str | None = None) -> str:
        """A small constant of the activations' type, or of `dtype`."""
        array = np.asarray(data, _NUMPY[dtype or self.dtype])
        key = ("const", array.dtype.str, array.shape, array.tobytes())
        return self.once(key, lambda: self._constant(array))

    def ints(self, *values: int) -> str:
        """An i64 vector, as shapes and axes are."""
        return self.const(values, "i64")

    def weight(self, recipe: Value) -> PackedWeight:
        """A weight that the compiler stores; see `initializer` for the values it becomes."""
        parts = components(recipe.type, {})
        return PackedWeight(self.recipes.name(recipe), format_of(recipe.type), {part.role: part for part in parts})

    def initializer(
        self, stored: PackedWeight, role: str, shape: tuple[int, ...], part: int = 0, parts: int = 1
    ) -> str:
        """The `part`th of `parts` equal pieces of a component, read as `shape`. Raw: not cast to the activations."""
        component = stored.components[role]
        tensor = tensor_name(stored.name, component)
        assert prod(shape) * parts == component.size, f"{tensor} {component.shape} does not hold {parts} of {shape}"
        name = tensor if (shape, parts) == (component.shape, 1) else f"{tensor}/{'x'.join(map(str, shape))}[{part}]"
        found = Reference(name, tensor, component.dtype, shape, part * (component.nbytes // parts))
        self.references[name] = found
        return name

    def floats(self, stored: PackedWeight, role: str, shape: tuple[int, ...], part: int = 0, parts: int = 1) -> str:
        """As `initializer`, for a float component, in the activations' type: ONNX Runtime folds the cast at load."""
        name = self.initializer(stored, role, shape, part, parts)
        return self.cast(name, stored.components[role].dtype)

    def cast(self, x: str, dtype: str, to: str | None = None) -> str:
        """x of type `dtype` as `to`, by default the activations' type."""
        to = to or self.dtype
        return x if dtype == to else self.once(("cast", x, to), lambda: self.node("Cast", x, to=ELEMENTS[to]))

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *axes: int) -> str:
        return self.node("Transpose", x, perm=list(axes))

    def slice(self, x: str, start: int, stop: int, axis: int = -1) -> str:
        return self.node("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))

    @contextmanager
    def branch(self) -> Iterator[list[NodeProto]]:
        """Nodes appended inside go into the list that is given, for a subgraph; constants stay with the graph.

        What `once` made inside is forgotten afterwards: other branches cannot see it.
        """
        outer, memo = self.nodes, dict(self._memo)
        self.nodes = []
        try:
            yield self.nodes
        finally:
            kept = {key: name for key, name in self._memo.items() if key[0] == "const"}
            self.nodes, self._memo = outer, kept | memo

    def subgraph(self, name: str, nodes: list[NodeProto], result: str, dtype: str | None = None) -> GraphProto:
        """A branch of If with one result, of the activations' type or of `dtype`."""
        element = ELEMENTS[dtype or self.dtype]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(result, element, None)])

    def _constant(self, array: NDArray[Any]) -> str:
        name = self._fresh("const")
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _fresh(self, op: str) -> str:
        self._counts[op] = self._counts.get(op, -1) + 1
        return f"{op}_{self._counts[op]}"


def packed(weight: Value) -> Value:
    """The recipe of a quantised weight in the layout of MatMulNBits."""
    return ops.apply("pack", (weight,), {"layout": "nbits"})


def source(weight: Value) -> tuple[Value, WeightFormat]:
    """What a quantised weight is made from, and its format."""
    assert weight.op == "quantize", f"{weight!r} is not quantised"
    return weight.inputs[0], WeightFormat.parse(str(weight.attrs["format"]))


def requantised(weight: Value, format: WeightFormat) -> Value:
    return ops.apply("quantize", (weight,), {"format": format.name})


def sizes(type: TensorType) -> tuple[int, ...]:
    """The dims of a weight."""
    return tuple(int(dim) for dim in type.shape)
