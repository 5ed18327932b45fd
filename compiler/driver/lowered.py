"""The entries after all passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dsv3c.compiler.core.caches import Cache, caches_of
from dsv3c.compiler.core.ir import Graph
from dsv3c.compiler.core.target import EntryGraph


@dataclass(frozen=True)
class Lowered:
    """The entries after all passes, what the passes did, the bounds of one step."""

    entries: Mapping[str, EntryGraph]
    rewrites: Mapping[str, Mapping[str, int]]
    bounds: Mapping[str, int]

    @property
    def graphs(self) -> dict[str, Graph]:
        return {name: entry.graph for name, entry in self.entries.items()}

    @property
    def caches(self) -> tuple[Cache, ...]:
        return caches_of(self.graphs.values())

    @property
    def cache_bytes_per_token(self) -> int:
        """Of all caches together."""
        return sum(cache.slot_bytes for cache in self.caches)
