"""The op table: for each operation its typing rule, its numpy evaluation, and where it is legal.

`primitive` is what the tracer records, `weight` are stored forms, `fused`, `moe` and `sparse` what the passes make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dsv3c.compiler.core.ir import Attr, Graph, TensorType, Value, topological_order
from dsv3c.compiler.core.ops import fused, moe, primitive, sparse, weight
from dsv3c.compiler.core.ops.table import Array, Op, infer_type
from dsv3c.compiler.errors import UnknownOpError

TABLE: Mapping[str, Op] = primitive.TABLE | weight.TABLE | fused.TABLE | moe.TABLE | sparse.TABLE


def lookup(op: str) -> Op:
    if op not in TABLE:
        raise UnknownOpError(op=op)
    return TABLE[op]


def leaf(op: str, name: str, type: TensorType) -> Value:
    """An input or a param."""
    return Value(op, (), {"name": name}, type)


def const(data: Any) -> Value:
    """A small float32 literal."""
    frozen = tuple(map(float, data)) if np.ndim(data) else float(data)
    return apply("const", (), {"data": frozen})


def apply(op: str, inputs: tuple[Value, ...], attrs: Mapping[str, Attr]) -> Value:
    """A typed value of `op`. Raises TypeRuleError, UnknownOpError."""
    return Value(op, inputs, dict(attrs), infer_type(lookup(op), tuple(value.type for value in inputs), attrs))


def evaluate(
    values: list[Value], given: Callable[[Value], Any], results: Mapping[Value, Any] | None = None
) -> list[Any]:
    """Evaluate in numpy; `given` provides inputs and params. Arrays are freed after their last use.

    results: of values that are computed already, whose operands are not looked at.
    """
    known = dict(results or {})
    order = topological_order(values, known)
    last_use = {source: index for index, value in enumerate(order) for source in value.inputs}
    wanted = set(values)
    for index, value in enumerate(order):
        op = lookup(value.op)
        if value.op in ("input", "param"):
            known[value] = given(value)
        else:
            known[value] = op.evaluate(*(known[source] for source in value.inputs), **value.semantics)
        for source in dict.fromkeys(value.inputs):
            if last_use[source] == index and source not in wanted:
                del known[source]
    return [known[value] for value in values]


def evaluate_graph(graph: Graph, inputs: Mapping[str, Array], weights: Callable[[str], Array]) -> dict[str, Any]:
    """Evaluate a graph in numpy: `inputs` by name, `weights(name)` for params."""

    def given(value: Value) -> Any:
        name = str(value.attrs["name"])
        return inputs[name] if value.op == "input" else weights(name)

    results = evaluate([value for _, value in graph.results], given)
    return {name: result for (name, _), result in zip(graph.results, results, strict=True)}


class Recorder:
    """The op namespace as the model sees it: `op.linear(x, weight)` records a value."""

    def __getattr__(self, op: str) -> Callable[..., Value]:
        def record(*inputs: Value, **attrs: Attr) -> Value:
            return apply(op, inputs, attrs)

        return record

    def const(self, data: Any) -> Value:
        return const(data)


class Evaluator:
    """The same namespace on numpy arrays: `op.linear(x, weight)` computes."""

    def __getattr__(self, op: str) -> Callable[..., Any]:
        return lookup(op).evaluate

    def const(self, data: Any) -> Array:
        return primitive.evaluate_const(data)
