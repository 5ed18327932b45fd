"""Patterns over the IR, written in the op language: `P.mul(x, P.rsqrt(P.any("v")))`.

A pattern is matched from a root value towards its inputs. A name binds a value; the same name twice demands the same
value. `add` and `mul` match with their operands in either order. An attribute given as a type demands any value of
that type: `P.const(data=float, name="scale")` is a scalar constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dsv3c.compiler.core.ir import Attr, Value

_COMMUTATIVE = ("add", "mul")


@dataclass(frozen=True)
class Pattern:
    """op: the operation wanted, "" for any value, "|" for the first of `inputs` that matches; name: what it binds.

    inputs: one for each operand, or none when the operands do not matter. attrs: what is demanded, by name.
    """

    op: str = ""
    inputs: tuple[Pattern, ...] = ()
    name: str = ""
    attrs: tuple[tuple[str, Attr | type], ...] = ()


class _Builder:
    """`P.linear(x, w, name="y")` is a pattern; keyword arguments other than name are required attributes."""

    def __getattr__(self, op: str) -> Callable[..., Pattern]:
        def build(*inputs: Pattern, name: str = "", **attrs: Attr | type) -> Pattern:
            return Pattern(op, inputs, name, tuple(attrs.items()))

        return build

    def any(self, name: str) -> Pattern:
        return Pattern(name=name)

    def either(self, *alternatives: Pattern) -> Pattern:
        return Pattern("|", alternatives)

    def scaled(self, x: Pattern, name: str) -> Pattern:
        """x times a constant, or x alone (a product with 1 is simplified away): see `Match.scalar`."""
        return self.either(self.mul(x, self.const(data=float, name=name)), x)


P = _Builder()


@dataclass
class Match:
    """A successful match: the bound values by name."""

    bound: dict[str, Value]
    root: Value

    def __getitem__(self, name: str) -> Value:
        return self.bound[name]

    def get(self, name: str) -> Value | None:
        return self.bound.get(name)

    def scalar(self, name: str) -> float:
        """The number of a bound constant; 1 when the match did without it, see `_Builder.scaled`."""
        value = self.bound.get(name)
        return 1.0 if value is None else float(value.attrs["data"])  # type: ignore[arg-type]

    def span(self, name: str) -> range:
        """The indices that a bound slice takes of its axis."""
        attrs = self.bound[name].attrs
        return range(attrs["start"], attrs["stop"], attrs.get("step", 1))  # type: ignore[arg-type]


@dataclass
class Miss:
    """The attempt that came nearest: how many operations matched, and where it ended."""

    depth: int = 0
    reason: str = "no value has the operation of the pattern's root"
    trail: int = field(default=0, repr=False)

    def note(self, value: Value, wanted: str) -> None:
        if self.trail > self.depth:
            self.depth = self.trail
            self.reason = f"at {value!r}: wanted {wanted}"


def find(pattern: Pattern, root: Value, miss: Miss) -> Match | None:
    """Match `pattern` at `root`; a failure that comes nearer than `miss` replaces it."""
    miss.trail = 0
    bound = next(_match(pattern, root, {}, miss), None)
    return None if bound is None else Match(bound, root)


def _match(pattern: Pattern, value: Value, bound: dict[str, Value], miss: Miss) -> Iterator[dict[str, Value]]:
    if pattern.op == "|":
        trail = miss.trail
        for alternative in pattern.inputs:
            miss.trail = trail
            yield from _match(alternative, value, bound, miss)
        return
    if bound.get(pattern.name, value) != value:
        miss.note(value, f"the value bound to {pattern.name} before")
        return
    if pattern.op and not _same_operation(pattern, value):
        miss.note(value, pattern.op + (f" with {dict(pattern.attrs)}" if pattern.attrs else ""))
        return
    miss.trail += bool(pattern.op)
    if pattern.name:
        bound = bound | {pattern.name: value}
    if not pattern.op or not pattern.inputs:
        yield bound
        return
    trail = miss.trail
    yield from _match_inputs(pattern.inputs, value.inputs, bound, miss)
    if pattern.op in _COMMUTATIVE:
        miss.trail = trail
        yield from _match_inputs(pattern.inputs, value.inputs[::-1], bound, miss)


def _same_operation(pattern: Pattern, value: Value) -> bool:
    return (
        value.op == pattern.op
        and len(pattern.inputs) in (0, len(value.inputs))
        and all(_demanded(value.attrs.get(key), wanted) for key, wanted in pattern.attrs)
    )


def _demanded(attr: Attr, wanted: Attr | type) -> bool:
    return isinstance(attr, wanted) if isinstance(wanted, type) else attr == wanted


def _match_inputs(
    patterns: tuple[Pattern, ...], values: tuple[Value, ...], bound: dict[str, Value], miss: Miss
) -> Iterator[dict[str, Value]]:
    if not patterns:
        yield bound
        return
    for partial in _match(patterns[0], values[0], bound, miss):
        yield from _match_inputs(patterns[1:], values[1:], partial, miss)
