"""fuse-qkv-a: the query and the latent projection read the same input; one product serves both.

    %q = linear(%x, %wq); %kv = linear(%x, %wkv)
        ->  %qkv = linear(%x, concat(%wq, %wkv)); %q = slice(%qkv); %kv = slice(%qkv)

The latent projection is the one that is only ever read in slices (latent | rotary key); the query side is q_a_proj, or
q_proj in models without a query latent. Where more read the input, as an indexer does, it is the one that is normed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight


@dataclass(frozen=True)
class FuseQkvA:
    name: ClassVar[str] = "fuse-qkv-a"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        users = graph.users()
        pairs = [pair for readers in users.values() if (pair := _projections(readers, users))]
        split = {value: pair for pair in pairs for value in pair}

        def visit(value: Value, original: Value) -> Value:
            return _slice_of_joined(value, original, *split[original]) if original in split else value

        return graph.map(visit), len(pairs)


def _projections(readers: list[Value], users: dict[Value, list[Value]]) -> tuple[Value, Value] | None:
    """(query, latent) among the readers of one value, or None."""
    linears = [
        value
        for value in readers
        if value.op == "linear" and len(value.inputs[1].shape) == 2 and is_weight(value.inputs[1])
    ]
    latent = [value for value in linears if users[value] and all(user.op == "slice" for user in users[value])]
    queries = [value for value in linears if value not in latent]
    if len(queries) > 1:
        queries = [value for value in queries if {user.op for user in users[value]} == {"rms_norm"}]
    return (queries[0], latent[0]) if len(queries) == len(latent) == 1 else None


def _slice_of_joined(value: Value, original: Value, query: Value, latent: Value) -> Value:
    """The part of the joined product that `original` (query or latent) was; `value` has the rebuilt input."""
    w_query, w_latent = query.inputs[1], latent.inputs[1]
    joined = ops.apply("linear", (value.inputs[0], ops.apply("concat", (w_query, w_latent), {"axis": 0})), {})
    split, end = w_query.shape[0], joined.shape[-1]
    start, stop = (0, split) if original == query else (split, end)
    return ops.apply("slice", (joined,), {"axis": -1, "start": start, "stop": stop})
