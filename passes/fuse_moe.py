"""fuse-moe: the dense mixture becomes two products over the pairs of token and chosen expert.

    every expert on every token, mixed by put_along(%ids, %weights), plus the shared experts' MLP
        ->  %order = expert_order(%ids)                          pairs sorted by expert
            %h = moe_gate_up(%x, %order, %w_gate_up)             silu(gate) * up, one row a pair
            moe_down(%h, %order, %weights, %w_down)              weighted sum per token

A shared MLP of n × moe_intermediate_size is n further experts that every token visits with weight 1: its gate and up
rows and its down columns are cut into n pieces and stacked behind the routed experts.

Where tokens choose among more than the experts there are (LongCat-Flash, arXiv 2509.01322, section 2.1), the mixture
has the first columns of put_along, and moe_down takes expert_weights(%ids, %weights). The others give x back:

    mul(%x, sum(slice(put_along(%ids, %weights))))  ->  identity_experts(%x, %ids, %weights)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.pattern import Match, P, Pattern
from dsv3c.compiler.core.rewrite import Rule, rewrite_graph

x = P.any("x")


def gated(gate: str, up: str) -> Pattern:
    """silu(x·gate) * (x·up)."""
    projected = P.linear(x, P.any(gate))
    return P.mul(P.mul(projected, P.sigmoid(projected)), P.linear(x, P.any(up)))


marks = P.put_along(P.any("ids"), P.any("weights"), name="marks")
held = P.either(P.slice(marks, axis=-1, start=0, name="held"), marks)
mix = P.reshape(P.transpose(held, axes=(1, 0)), name="mix")
routed = P.sum(P.mul(P.linear(gated("gate", "up"), P.any("down")), mix), axis=0, keepdims=False, name="routed")
shared = P.linear(gated("shared_gate", "shared_up"), P.any("shared_down"))


class Moe(Rule):
    pattern: ClassVar[Pattern] = routed

    def check(self, match: Match) -> str | None:
        gate, up, ids = match["gate"], match["up"], match["ids"]
        if len(gate.shape) != 3 or up.shape != gate.shape:
            return f"{gate!r} and {up!r} are not gate and up stacked over the experts"
        if match["mix"].shape != (gate.shape[0], ids.shape[0], 1) or match["weights"].shape != ids.shape:
            return f"{match['mix']!r} is not one weight a token and expert"
        if ids.op not in ("router", "top_k"):
            return f"{ids!r} may name an expert twice"
        shared_gate, shared_up = match.get("shared_gate"), match.get("shared_up")
        if shared_gate is None or shared_up is None:
            return None
        if shared_gate.shape == shared_up.shape and int(shared_gate.shape[0]) % int(gate.shape[1]) == 0:
            return None
        return f"{shared_gate!r} and {shared_up!r} are no multiple of an expert's width {gate.shape[1]}"

    def rewrite(self, match: Match) -> Value:
        n_experts, width, hidden = map(int, match["gate"].shape)
        gate, up, down = match["gate"], match["up"], match["down"]
        n_shared = 0
        if match.get("shared_gate") is not None:
            n_shared = int(match["shared_gate"].shape[0]) // width
            rows = {"shape": (n_shared, width, hidden)}
            gate = _stack(gate, ops.apply("reshape", (match["shared_gate"],), rows))
            up = _stack(up, ops.apply("reshape", (match["shared_up"],), rows))
            columns = ops.apply("reshape", (match["shared_down"],), {"shape": (hidden, n_shared, width)})
            down = _stack(down, ops.apply("transpose", (columns,), {"axes": (1, 0, 2)}))
        order = ops.apply("expert_order", (match["ids"],), {"n_experts": n_experts, "n_shared": n_shared})
        h = ops.apply("moe_gate_up", (match["x"], order, _pair(gate, up)), {})
        weights = match["weights"]
        if match.get("held") is not None:
            weights = ops.apply("expert_weights", (match["ids"], weights), {"n_experts": n_experts})
        return ops.apply("moe_down", (h, order, weights, down), {})


def _stack(routed_weight: Value, shared_weight: Value) -> Value:
    return ops.apply("concat", (routed_weight, shared_weight), {"axis": 0})


def _pair(gate: Value, up: Value) -> Value:
    """[E', 2, I, D]."""
    n_experts, width, hidden = gate.shape
    single = {"shape": (n_experts, 1, width, hidden)}
    parts = tuple(ops.apply("reshape", (weight,), single) for weight in (gate, up))
    return ops.apply("concat", parts, {"axis": 1})


class MoeShared(Moe):
    pattern: ClassVar[Pattern] = P.add(routed, shared)


class Identity(Rule):
    pattern: ClassVar[Pattern] = P.mul(x, P.sum(P.slice(marks, axis=-1, name="rest"), axis=-1, keepdims=True))

    def check(self, match: Match) -> str | None:
        ids, rest, size = match["ids"], match.span("rest"), match["marks"].shape[-1]
        if ids.op not in ("router", "top_k"):
            return f"{ids!r} may name an expert twice"
        if rest != range(rest.start, int(size)) or match["weights"].shape != ids.shape:
            return f"{match['rest']!r} is not all that is behind the experts"
        if len(match["x"].shape) == 2 and match["x"].shape[0] == ids.shape[0]:
            return None
        return f"{match['x']!r} is not one row a token"

    def rewrite(self, match: Match) -> Value:
        operands = (match["x"], match["ids"], match["weights"])
        return ops.apply("identity_experts", operands, {"n_experts": match.span("rest").start})


@dataclass(frozen=True)
class FuseMoe:
    name: ClassVar[str] = "fuse-moe"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        # The alternative without shared experts would take the inner sum first, since inputs are visited before users.
        graph, with_shared = rewrite_graph(graph, (MoeShared(),), self.name)
        graph, without = rewrite_graph(graph, (Moe(),), self.name)
        graph, identities = rewrite_graph(graph, (Identity(),), self.name)
        return graph, with_shared + without + identities
