"""Which experts an answer used, for who asks with `experts: true`: of its own tokens, whoever else is in its steps."""

from __future__ import annotations

from typing import Any

from dsv3c.runtime.server.deltas import Ended


def experts_of(ended: Ended | None) -> dict[str, Any]:
    """A field of a choice, or none."""
    experts = None if ended is None else ended.generation.experts
    return {} if experts is None else {"experts": experts.to_json()}
