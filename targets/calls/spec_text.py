"""Specs of kernels as text: what `repr` writes of one is read back."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.table import UnknownWeightFormat, WeightFormat
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows, View

# What specs are made of; a format is known by its name.
_PARTS: Mapping[str, Callable[..., Any]] = {
    "Paging": Paging,
    "Rows": Rows,
    "View": View,
    "WeightFormat": lambda name: WeightFormat.parse(name),
}


class BadSpecError(Dsv3cError):
    message = "{text!r} names no kernel: {reason}"
    hint = "a kernel is named as in Add(rows=Rows(bound=18), d=37); kinds are {known}"


class UnknownLevelError(Dsv3cError):
    message = "the target has no level {level!r}; its levels are {known}"


def parse_spec(text: str, kinds: Iterable[type]) -> Any:
    """The spec of one of `kinds`. Raises BadSpecError."""
    kinds = tuple(kinds)
    try:
        spec = _value(ast.parse(text, mode="eval").body, {**_PARTS, **{kind.__name__: kind for kind in kinds}})
    except (SyntaxError, TypeError, ValueError, UnknownWeightFormat) as error:
        raise _bad(text, str(error), kinds) from error
    if not isinstance(spec, kinds):
        raise _bad(text, "it is a part of one", kinds)
    return spec


def check_level(level: str, known: Sequence[str]) -> None:
    """Raises UnknownLevelError."""
    if level not in known:
        raise UnknownLevelError(level=level, known=", ".join(known) or "none")


def _bad(text: str, reason: str, kinds: Iterable[type]) -> BadSpecError:
    return BadSpecError(text=text, reason=reason, known=", ".join(sorted(kind.__name__ for kind in kinds)))


def _value(node: ast.expr, kinds: Mapping[str, Callable[..., Any]]) -> Any:
    """Calls of known classes, and literals; nothing else is run."""
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in kinds:
        raise ValueError(f"{ast.unparse(node.func)} is not known")
    given = {str(keyword.arg): _value(keyword.value, kinds) for keyword in node.keywords}
    return kinds[name](*(_value(argument, kinds) for argument in node.args), **given)
