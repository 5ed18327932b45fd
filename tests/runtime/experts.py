"""Which experts tokens visit, by the numpy evaluation of the model as it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import caches_of
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE

Ids = NDArray[np.int32]


def visited(checkpoint: Checkpoint, tokens: Ids) -> dict[int, Ids]:
    """By layer the ids [T, experts a token], rising, for the tokens of a text."""
    graph = tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)
    pages = -(-tokens.size // PAGE_SIZE)
    given: dict[str, Any] = {
        "tokens": tokens,
        "positions": np.arange(tokens.size, dtype=np.int32),
        "sequence": np.zeros(tokens.size, np.int32),
        "page_table": np.arange(pages, dtype=np.int32)[None],
        "rows": np.array([0], np.int32),
        **{cache.name: cache.zeros(pages * PAGE_SIZE) for cache in caches_of([graph])},
    }
    found = ops.evaluate_graph(graph, given, checkpoint.read)
    prefix = "experts."
    return {
        int(name.removeprefix(prefix)): np.sort(ids, axis=-1) for name, ids in found.items() if name.startswith(prefix)
    }


def counted(by_layer: Mapping[int, Ids], experts: int) -> dict[int, list[int]]:
    return {layer: np.bincount(ids.reshape(-1), minlength=experts).tolist() for layer, ids in by_layer.items()}
