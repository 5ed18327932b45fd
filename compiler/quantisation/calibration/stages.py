"""The order in which an entry is calibrated: a matrix is rounded when all rows that meet it are known, then evaluated.

What is calibrated is the graph that targets are given, with its weights and activations as floats again. It falls into
stages. A stage begins with the matrices whose rows the stages before have computed; once they are rounded, all that
needs no further matrix is computed for one sequence after the other, and of it what later stages read is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsv3c.compiler.core.caches import cache_of
from dsv3c.compiler.core.ir import Graph, Value, is_weight, topological_order
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.core.storage import memory_owner
from dsv3c.compiler.formats.table import WeightFormat

# Stored forms of what the operand is.
_STORED = ("quantize", "pack", "quantize_rows")


@dataclass(frozen=True)
class Matrix:
    """weight: f32 [N, K], or one for each head [H, N, K]. rows: the value whose rows meet it.

    Rows of [T, H, K] meet the matrix of their head. Those of [T, L] meet all of them, with their first K columns.
    """

    weight: Value
    rows: Value


@dataclass(frozen=True)
class Experts:
    """The two products of a mixture of experts, `moe_gate_up` and the `moe_down` that reads it."""

    gate_up: Value
    down: Value

    @property
    def rows(self) -> Value:
        return self.gate_up.inputs[0]

    @property
    def order(self) -> Value:
        return self.gate_up.inputs[1]

    @property
    def weights(self) -> Value:
        """Of the experts of each token, f32 [T, k]."""
        return self.down.inputs[2]


@dataclass(frozen=True)
class FloatGraph:
    """A graph without stored forms. formats: of each operand, by operation and position, that was stored in one."""

    graph: Graph
    formats: Mapping[tuple[Value, int], WeightFormat]

    def has_codes(self, value: Value, position: int) -> bool:
        format = self.formats.get((value, position))
        return format is not None and format.has_codes


@dataclass(frozen=True)
class Stage:
    """matrices, experts: rounded first, in this order. values: computed then, for one sequence after the other; kept:
    those of them that later stages read. reads: what `values` take of what is kept; operands: the weights that they
    take. dropped: what is read no more.

    What experts put out is kept before `values` are computed, where anything reads it: those are in `mixed`.
    """

    matrices: tuple[Matrix, ...]
    experts: tuple[Experts, ...]
    mixed: tuple[Value, ...]
    values: tuple[Value, ...]
    kept: tuple[Value, ...]
    reads: tuple[Value, ...]
    operands: tuple[Value, ...]
    dropped: tuple[Value, ...]


def float_graph(graph: Graph) -> FloatGraph:
    formats: dict[tuple[Value, int], WeightFormat] = {}

    def visit(value: Value, original: Value) -> Value:
        if value.op in _STORED:
            return value.inputs[0]
        for position, operand in enumerate(original.inputs):
            if operand.op in ("quantize", "pack"):
                formats[value, position] = format_of(operand.type)
        return value

    return FloatGraph(graph.map(visit), formats)


def products(source: FloatGraph) -> list[Matrix | Experts]:
    """The matrices of codes whose rows the graph computes, and all experts, in the order of the graph."""
    found: list[Matrix | Experts] = []
    for value in source.graph.values():
        if value.op in ("linear", "head_linear") and source.has_codes(value, 1):
            found.append(Matrix(value.inputs[1], value.inputs[0]))
        if value.op == "moe_down" and value.inputs[0].op == "moe_gate_up":
            found.append(Experts(value.inputs[0], value))
    return found


def latent_products(source: FloatGraph, main: FloatGraph) -> list[Matrix]:
    """Matrices that meet the rows of a cache, with the rows as the graph `main` writes them."""
    written = {cache_of(memory_owner(value)).name: value for value in main.graph.values() if value.op == "mla_write"}
    found = []
    for value in source.graph.values():
        if value.op == "mla_materialized":
            rows = written[cache_of(memory_owner(value.inputs[2])).name]
            found += [Matrix(value.inputs[at], rows) for at in (3, 4) if source.has_codes(value, at)]
    return found


def in_stages(source: FloatGraph, wanted: Sequence[Matrix | Experts], results: Sequence[Value] = ()) -> list[Stage]:
    """The stages in which all of `wanted` is rounded, computing no more than that and `results` take.

    `results` are kept to the end.
    """
    weights: dict[Value, bool] = {}
    numbers = _numbers(source, weights)
    stages = {item: _stage_of(item, numbers) for item in wanted}
    experts = {value for item in wanted if isinstance(item, Experts) for value in (item.gate_up, item.down)}
    roots = [value for item in wanted for value in _operands(item)]
    live = [value for value in topological_order([*roots, *results]) if value.op != "input" and not weights[value]]
    computed = [value for value in live if value not in experts]
    last: dict[Value, int] = {}

    def read(value: Value, stage: int) -> None:
        if value.op != "input" and not weights[value]:
            last[value] = max(last.get(value, stage), stage)

    count = 1 + max([*stages.values(), *(numbers[value] for value in results)], default=-1)
    for value in computed:
        for operand in value.inputs:
            read(operand, numbers[value])
    for item, stage in stages.items():
        for operand in _operands(item):
            read(operand, stage)
    for value in results:
        read(value, count)

    def made(number: int) -> Stage:
        here = [item for item in wanted if stages[item] == number]
        values = [value for value in computed if numbers[value] == number]
        operands = dict.fromkeys(operand for value in values for operand in value.inputs if operand.op != "input")
        return Stage(
            tuple(item for item in here if isinstance(item, Matrix)),
            tuple(item for item in here if isinstance(item, Experts)),
            tuple(item.down for item in here if isinstance(item, Experts) and item.down in last),
            tuple(values),
            tuple(value for value in values if last.get(value, number) > number),
            tuple(value for value in operands if value in last and (numbers[value] < number or value in experts)),
            tuple(value for value in operands if weights[value]),
            tuple(value for value in live if last.get(value) == number),
        )

    return [made(number) for number in range(count)]


def _numbers(source: FloatGraph, weights: dict[Value, bool]) -> dict[Value, int]:
    """The stage in which each value can be computed; `weights` is filled with what is_weight says."""
    numbers: dict[Value, int] = {}
    for value in source.graph.values():
        is_weight(value, weights)
        product = value.op in ("linear", "head_linear") and source.has_codes(value, 1)
        behind = product or value.op == "moe_gate_up"
        numbers[value] = max((numbers[operand] for operand in value.inputs), default=0) + behind
    return numbers


def _stage_of(item: Matrix | Experts, numbers: Mapping[Value, int]) -> int:
    """The stage that an item is rounded in."""
    return numbers[item.rows] + 1 if isinstance(item, Matrix) else numbers[item.down]


def _operands(item: Matrix | Experts) -> tuple[Value, ...]:
    return (item.rows,) if isinstance(item, Matrix) else (item.rows, item.order, item.weights)
