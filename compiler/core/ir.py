"""The IR: a typed graph of single-result operations, immutable, printed as text that parses back.

Grammar of the text (`str(graph)`; `parse_graph` is its inverse):

    graph   = "graph" NAME "{" { line } "return" result { "," result } "}"
    line    = value ":" type "=" OP "(" [ value { ", " value } ] ")" [ attrs ]
    result  = NAME "=" value
    value   = "%" NAME                     inputs, params: their own name; all others: a number in program order;
                                           a name has no white space in it, so that ", " ends it
    attrs   = a JSON object                {"axis": -1, "eps": 1e-06}
    type    = DTYPE "[" [ dim { ", " dim } ] "]" [ "@" LAYOUT ]
    dim     = INT | [ INT "*" ] NAME { "*" NAME }
                                           T tokens of the step, R rows that want logits, S sequences,
                                           P pages per sequence, N cache slots

DTYPE is f32, f16, bf16, i32, i8, u8 or bool; a quantised weight carries the name of its format (int4-g32-asym), a
quantised activation q8-gA, a cache of codes int8-atR or fp8-atR, where R columns share one scale and those behind them
another. LAYOUT names the order of a packed weight's bytes (rows16). Empty lines and
those that start with # are skipped.

Values are compared by structure: two values are equal when they stand for the same computation on the same leaves, so
equal subexpressions are one node and equal graphs are the same program.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dsv3c.compiler.errors import IrLineError, IrSyntaxError

Dim = int | str
Attr = int | float | str | bool | None | tuple["Attr", ...]

_LINE = re.compile(
    r"%(?P<name>\S+): (?P<type>\S+?\[.*?\](?:@\w+)?) = (?P<op>\w+)\((?P<inputs>.*?)\)(?: (?P<attrs>\{.*\}))?"
)
_TYPE = re.compile(r"(?P<dtype>[\w-]+)\[(?P<dims>.*?)\](?:@(?P<layout>\w+))?")
_DIM = re.compile(r"[0-9]{1,18}|([0-9]{1,18}\*)?[A-Za-z]\w*(\*[A-Za-z]\w*)*")
_NAMED_LEAVES = ("input", "param")


def dim_product(*dims: Dim) -> Dim:
    """Multiply dims; a symbolic product has one canonical spelling, the coefficient before the sorted names."""
    coefficient, names = 1, []
    for dim in dims:
        for factor in str(dim).split("*"):
            if factor.isdigit():
                coefficient *= int(factor)
            else:
                names.append(factor)
    if not names or coefficient == 0:
        return coefficient
    return "*".join(([str(coefficient)] if coefficient != 1 else []) + sorted(names))


def dim_size(dim: Dim, bounds: Mapping[str, int]) -> int:
    """Size of a dim under `bounds`, e.g. 16*P*S with {"P": 4, "S": 2}."""
    size = 1
    for factor in str(dim).split("*"):
        size *= int(factor) if factor.isdigit() else bounds[factor]
    return size


@dataclass(frozen=True)
class TensorType:
    """Element type, shape (sizes or symbolic dims), and for packed weights the layout of the bytes."""

    dtype: str
    shape: tuple[Dim, ...]
    layout: str = ""

    def __str__(self) -> str:
        suffix = f"@{self.layout}" if self.layout else ""
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]{suffix}"


@dataclass(frozen=True, eq=False)
class Value:
    """One operation and its result. Compared by `key`, a digest of the whole computation."""

    op: str
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Attr]
    type: TensorType
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.op} {self.type} {_attrs_text(self.attrs)}".encode())
        for value in self.inputs:
            digest.update(value.key)
        object.__setattr__(self, "key", digest.digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<{self.op} {self.attrs.get('name', '')}: {self.type}>"

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def semantics(self) -> Mapping[str, Attr]:
        """The attributes that say what is computed: all but `arena`, plan-memory's note of where the result lies."""
        return {key: attr for key, attr in self.attrs.items() if key != "arena"}

    def replace(self, inputs: tuple[Value, ...] | None = None, attrs: Mapping[str, Attr] | None = None) -> Value:
        """The same operation on other inputs or with other attributes; the type stays, the verifier checks it."""
        return Value(
            self.op, self.inputs if inputs is None else inputs, self.attrs if attrs is None else attrs, self.type
        )


@dataclass(frozen=True)
class Graph:
    """A named program: the results by name; everything else is reachable from them."""

    name: str
    results: tuple[tuple[str, Value], ...]

    def values(self) -> list[Value]:
        """All values, inputs before users, in a fixed order (depth first from the first result)."""
        return list(self._order)

    @cached_property
    def _order(self) -> tuple[Value, ...]:
        return tuple(topological_order(value for _, value in self.results))

    def result(self, name: str) -> Value:
        return dict(self.results)[name]

    def count(self, op: str) -> int:
        return sum(value.op == op for value in self.values())

    def users(self) -> dict[Value, list[Value]]:
        """For each value the values that read it."""
        users: dict[Value, list[Value]] = {value: [] for value in self.values()}
        for value in users:
            for source in dict.fromkeys(value.inputs):
                users[source].append(value)
        return users

    def map(self, function: Callable[[Value, Value], Value]) -> Graph:
        """Rebuild inputs first: `function(value, original)` gets a value whose inputs are rebuilt, and as it was."""
        rebuilt: dict[Value, Value] = {}
        for original in self.values():
            inputs = tuple(rebuilt[source] for source in original.inputs)
            value = original if inputs == original.inputs else original.replace(inputs=inputs)
            rebuilt[original] = function(value, original)
        return Graph(self.name, tuple((name, rebuilt[value]) for name, value in self.results))

    def __str__(self) -> str:
        names = value_names(self)
        lines = [f"  {value_text(value, names)}" for value in self.values()]
        results = ", ".join(f"{name}=%{names[value]}" for name, value in self.results)
        return "\n".join([f"graph {self.name} {{", *lines, f"  return {results}", "}"])


def topological_order(roots: Iterable[Value], known: Container[Value] = ()) -> list[Value]:
    """Values reachable from `roots`, inputs first, without going past those that are `known`.

    Iterative: a deep model passes Python's recursion limit.
    """
    order: dict[Value, None] = {}
    for root in roots:
        stack = [] if root in known else [root]
        while stack:
            value = stack[-1]
            pending = [source for source in reversed(value.inputs) if source not in order and source not in known]
            if pending:
                stack.extend(pending)
                continue
            stack.pop()
            order.setdefault(value)
    return list(order)


def is_weight(value: Value, memo: dict[Value, bool] | None = None) -> bool:
    """True when the value depends on params and constants alone, so that it is computed at compile time.

    memo: answers so far; give one dict to many calls over a graph, else each of them walks all below its value.
    """
    memo = {} if memo is None else memo
    for node in topological_order([value], known=memo):
        sources = [memo[source] for source in node.inputs]
        memo[node] = node.op in ("param", "const") or (bool(sources) and all(sources))
    return memo[value]


# --- text ------------------------------------------------------------------------------------------------------------


def _attrs_text(attrs: Mapping[str, Attr]) -> str:
    return json.dumps(dict(sorted(attrs.items())))


def value_names(graph: Graph) -> dict[Value, str]:
    """The printed name of each value: its own for inputs and params, else its number in program order."""
    names: dict[Value, str] = {}
    for number, value in enumerate(graph.values()):
        names[value] = str(value.attrs["name"]) if value.op in _NAMED_LEAVES else str(number)
    return names


def value_text(value: Value, names: Mapping[Value, str]) -> str:
    """One line of the printed graph."""
    inputs = ", ".join(f"%{names[source]}" for source in value.inputs)
    attrs = {key: attr for key, attr in value.attrs.items() if not (key == "name" and value.op in _NAMED_LEAVES)}
    text = f"%{names[value]}: {value.type} = {value.op}({inputs})"
    return f"{text} {_attrs_text(attrs)}" if attrs else text


def parse_type(text: str) -> TensorType:
    """Inverse of `str(TensorType)`. Raises IrSyntaxError."""
    match = _TYPE.fullmatch(text)
    if not match:
        raise IrSyntaxError(line=text, reason="a type reads dtype[dims] or dtype[dims]@layout")
    dims = match["dims"].split(", ") if match["dims"] else []
    wrong = next((dim for dim in dims if not _DIM.fullmatch(dim)), None)
    if wrong is not None:
        raise IrSyntaxError(line=text, reason=f"{wrong!r} is no dim")
    return TensorType(match["dtype"], tuple(map(dim_product, dims)), match["layout"] or "")


def _freeze(attr: Any) -> Attr:
    return tuple(_freeze(item) for item in attr) if isinstance(attr, list) else attr


def _parse_line(line: str, values: dict[str, Value]) -> None:
    match = _LINE.fullmatch(line)
    if not match:
        raise IrSyntaxError(line=line, reason="a line reads %name: type = op(%inputs) {attrs}")
    if match["name"] in values:
        raise IrSyntaxError(line=line, reason=f"%{match['name']} is defined twice")
    inputs = []
    for operand in match["inputs"].split(", ") if match["inputs"] else ():
        name = operand.removeprefix("%")
        if name == operand:
            raise IrSyntaxError(line=line, reason=f"the operand {operand!r} does not start with %")
        if name not in values:
            raise IrSyntaxError(line=line, reason=f"{operand} is used before it is defined")
        inputs.append(values[name])
    try:
        attrs = {key: _freeze(attr) for key, attr in json.loads(match["attrs"] or "{}").items()}
    except (ValueError, RecursionError) as error:
        raise IrSyntaxError(line=line, reason=f"attributes are no JSON object ({error})") from error
    if match["op"] in _NAMED_LEAVES:
        attrs["name"] = match["name"]
    values[match["name"]] = Value(match["op"], tuple(inputs), attrs, parse_type(match["type"]))


def parse_graph(text: str) -> Graph:
    """Inverse of `str(graph)`. Types are taken as written; the verifier checks them. Raises IrLineError."""
    stripped = enumerate(map(str.strip, text.splitlines()), start=1)
    lines = [(number, line) for number, line in stripped if line and not line.startswith("#")]
    number, first = lines[0] if lines else (1, "")
    head = re.fullmatch(r"graph (\S+) \{", first)
    if not head or len(lines) < 3 or lines[-1][1] != "}" or not lines[-2][1].startswith("return "):
        raise IrLineError(number=number, line=first, reason="a graph reads graph NAME { lines return results }")
    values: dict[str, Value] = {}
    for number, line in lines[1:-2]:
        try:
            _parse_line(line, values)
        except IrSyntaxError as error:
            raise IrLineError(number=number, line=line, reason=error.reason) from error
    results, (number, line) = [], lines[-2]
    for part in line.removeprefix("return ").split(", "):
        name, _, value = part.partition("=%")
        if value not in values:
            raise IrLineError(number=number, line=line, reason=f"result {part!r} names no value")
        results.append((name, values[value]))
    return Graph(head[1], tuple(results))
