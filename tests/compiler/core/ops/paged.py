"""Two sequences in pages of four, and what tests of operations share: inputs, comparisons, plain formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import parse_type

PAGE = 4
PAGE_TABLE = np.array([[5, 1, 2], [0, 4, 3]], np.int32)
POSITIONS, SEQUENCE = np.array([6, 7, 0, 9], np.int32), np.array([0, 0, 1, 1], np.int32)
PAGING = (POSITIONS, SEQUENCE, PAGE_TABLE)


def evaluate(op: str, *arrays: Any, **attrs: Any) -> Any:
    return ops.lookup(op).evaluate(*arrays, **attrs)


def infer(op: str, *types: str, **attrs: Any) -> str:
    """The type of the result for operands of these types. Raises TypeRuleError."""
    operands = tuple(ops.leaf("input", f"x{i}", parse_type(type)) for i, type in enumerate(types))
    return str(ops.apply(op, operands, attrs).type)


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def context_slots(token: int) -> list[int]:
    """Cache rows that a token sees, from its first position to its own."""
    pages = PAGE_TABLE[SEQUENCE[token]]
    return [int(pages[p // PAGE]) * PAGE + p % PAGE for p in range(POSITIONS[token] + 1)]


def close(result: Any, expected: Any) -> None:
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.array(expected), rtol=2e-5, atol=1e-6)


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]
