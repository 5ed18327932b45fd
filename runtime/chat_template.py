"""Render a checkpoint's chat template, which is untrusted Jinja code: sandboxed, bounded in time and in size.

The sandbox keeps attributes out of reach. Beyond it every loop, call and operator checks a deadline, and whatever can
make a large text of a small one (repetition, padding, replacing, joining) is measured before it runs.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from dsv3c.runtime.errors import MessagesInvalid, RuntimeFault, TemplateFailed, TemplateTooCostly

SECONDS = 2.0
CHARACTERS = 16 << 20
_SOURCE_LIMIT = 1 << 20
_WIDTH = re.compile(r"[%{:][^a-zA-Z]*(\d{5,}|\*)")
_LOOP = "_bounded_loop"
_CONCAT = "_bounded_concat"


class ChatTemplate:
    """A compiled template. Raises TemplateFailed for one that is no Jinja."""

    def __init__(self, source: str) -> None:
        if len(source) > _SOURCE_LIMIT:
            raise TemplateTooCostly(reason=f"it has {len(source)} characters")
        self._environment = _Environment()
        try:
            tree = _BoundLoops().visit(self._environment.parse(source))
            self._template = self._environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise TemplateFailed(reason=str(error)[:200] or type(error).__name__) from error

    def render(self, messages: Many[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        """Text of the messages. Raises MessagesInvalid, TemplateFailed, TemplateTooCostly."""
        _check_messages(messages)
        self._environment.deadline = time.monotonic() + SECONDS
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(messages=list(messages), **variables):
                size += len(part)
                self._environment.require(size)
                parts.append(part)
        except RuntimeFault:
            raise
        except Exception as error:  # any exception of template code, including what it raises on purpose
            raise TemplateFailed(reason=str(error)[:500] or type(error).__name__) from error
        return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.deadline = 0.0
        self.filters = {name: self._measured(name, filter_) for name, filter_ in self.filters.items()}
        self.filters |= {_LOOP: self._loop, _CONCAT: self._concat, "tojson": _tojson}
        self.globals.pop("lipsum", None)
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def tick(self) -> None:
        if time.monotonic() > self.deadline:
            raise TemplateTooCostly(reason=f"it runs for more than {SECONDS:g} seconds")

    def require(self, characters: int) -> None:
        self.tick()
        if characters > CHARACTERS:
            raise TemplateTooCostly(reason=f"it makes a text of more than {CHARACTERS} characters")

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps str.format; the method itself stands behind the wrapper.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | list | tuple | bytes):
            self._require_growth(name, owner, *args, *kwargs.values())
        else:
            self.tick()
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        if operator == "+":
            self.require(_length(left) + _length(right))
        if operator == "*":
            self._require_product(left, right)
        if operator == "%" and isinstance(left, str):
            self._require_growth("format", left, right)
        if operator == "**" and not (_small(left, 2**64) and _small(right, 64)):
            raise TemplateTooCostly(reason="it takes a power that is too large")
        return super().call_binop(context, operator, left, right)

    def _require_product(self, left: Any, right: Any) -> None:
        sized = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
        if sized:
            self.require(_length(left, numbers=True) * _length(right, numbers=True))
        if not sized and not (_small(left, 2**1024) and _small(right, 2**1024)):
            raise TemplateTooCostly(reason="it multiplies numbers that are too large")

    def _require_growth(self, name: str, *values: Any) -> None:
        """Bound the result of a text operation by its operands before it runs."""
        self.tick()
        if name == "replace" and len(values) >= 3 and all(isinstance(value, str) for value in values[:3]):
            self.require(len(values[0]) + values[0].count(values[1]) * len(values[2]))
        elif name in ("join", "indent", "translate", "expandtabs", "wordwrap", "replace"):
            product = 1
            for value in values:
                product *= max(1, _length(value, numbers=True))
            self.require(product)
        elif name in ("format", "format_map") and any(_WIDTH.search(v) for v in values if isinstance(v, str)):
            raise TemplateTooCostly(reason="it formats to a width that is too large")
        else:
            for value in values:
                self.require(_length(value, numbers=isinstance(values[0], str)))

    def _measured(self, name: str, filter_: Any) -> Any:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self._require_growth(name, *(args[passed:]), *kwargs.values())
            return filter_(*args, **kwargs)

        # Jinja marks a filter that wants the environment or the context as its first argument with an attribute.
        mark = getattr(filter_, "jinja_pass_arg", None)
        passed = 0 if mark is None else 1
        if mark is not None:
            measured.jinja_pass_arg = mark  # type: ignore[attr-defined]
        return measured

    def _loop(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.tick()
            yield value

    def _concat(self, parts: list[Any]) -> str:
        self.require(sum(_length(part) for part in parts))
        text = "".join(str(part) for part in parts)
        self.require(len(text))
        return text


class _BoundLoops(NodeTransformer):
    """Passes what a `for` runs over, and what `~` joins, through the filters that check the bounds."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        # What a recursive loop is called with later is not passed through here; the call itself is checked.
        node.iter = nodes.Filter(node.iter, _LOOP, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _CONCAT, [], [], None, None, lineno=node.lineno)


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise MessagesInvalid(reason="must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise MessagesInvalid(reason=f"message {index} has no string `role`")


def _length(value: Any, numbers: bool = False) -> int:
    if isinstance(value, str | bytes | list | tuple | dict):
        return len(value)
    return abs(value) if numbers and isinstance(value, int) else 0


def _small(value: Any, limit: int) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= limit)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # As transformers has it: no HTML escapes. `options` such as separators and sort_keys go to json.dumps.
    if indent is not None and not _small(indent, 16):
        raise TemplateTooCostly(reason="it indents too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if _WIDTH.search(form):
        raise TemplateTooCostly(reason="it formats to a width that is too large")
    return datetime.datetime.now().strftime(form)
