"""The pass contract and the driver of rewrite rules.

A pass takes a valid graph and returns a valid graph and how often it rewrote; its options are the fields of a frozen
dataclass. A fusion is `pattern`, `check` (why not, in a sentence, or None) and `rewrite`, written in the op language.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, Miss, Pattern, find
from dsv3c.compiler.options import debug_level


class Pass(Protocol):
    """`name` as on the command line; `phase` names the set of operations that are legal after it (see verifier)."""

    name: ClassVar[str]
    phase: ClassVar[str]

    def run(self, graph: Graph) -> tuple[Graph, int]: ...


class Rule(ABC):
    """One fusion: subclasses define the pattern (first alternative that matches wins), check and rewrite."""

    pattern: ClassVar[Pattern]

    def check(self, match: Match) -> str | None:
        """Why this match must not be rewritten, naming the value to blame; None when it may."""
        return None

    @abstractmethod
    def rewrite(self, match: Match) -> Value:
        """The value that takes the place of the matched root."""


def rewrite_graph(graph: Graph, rules: tuple[Rule, ...], title: str) -> tuple[Graph, int]:
    """Apply the first rule that fits at each value, inputs first. Returns the new graph and the number of rewrites.

    With DSV3C_DEBUG=2 the rewrites of each rule are told on stderr, and for one that never fired its nearest miss.
    """
    misses = [Miss() for _ in rules]
    fired = [0] * len(rules)

    def visit(value: Value, _: Value) -> Value:
        for index, rule in enumerate(rules):
            match = find(rule.pattern, value, misses[index])
            if match is None:
                continue
            refusal = rule.check(match)
            if refusal is not None:
                misses[index] = Miss(sys.maxsize, refusal)
                continue
            fired[index] += 1
            return rule.rewrite(match)
        return value

    result = graph.map(visit)
    if debug_level() >= 2:
        _tell(title, rules, fired, misses)
    return result, sum(fired)


def _tell(title: str, rules: tuple[Rule, ...], fired: list[int], misses: list[Miss]) -> None:
    for rule, count, miss in zip(rules, fired, misses, strict=True):
        text = f"{count} rewrites" if count else f"no match; nearest: {miss.reason}"
        print(f"dsv3c: {title}: {type(rule).__name__}: {text}", file=sys.stderr)
