"""The kernel whose text is kept for every target: a vector and a part of one, a sum over threads, a root."""

from __future__ import annotations

from dsv3c.targets.calls.norm import RmsNorm
from dsv3c.targets.calls.operands import Rows

SMALL = RmsNorm(Rows(4), 20, 1e-6)
