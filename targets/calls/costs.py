"""What a call of each kernel must read and compute, as plan.json states it for whoever measures.

Operations count two for each multiply-add of the products a model cannot do without; norms, activations and rotations
are left out. Weight bytes follow from the sizes of the weight buffers, so only what makes a call read less than
all of them is stated. dsv3c.runtime.artifact.costs has the meaning of each field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.artifact.costs import FLOAT32, INT8, Cost
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.embedding import Take
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.calls.sparse import IndexTopk, MlaSparse


def cost(spec: object) -> Cost | None:
    """The cost of one call of the kernel `spec` names; None where it is nothing but its operands."""
    rule = _RULES.get(type(spec))
    return rule(spec) if rule else None


def _rows(rows: Rows) -> str:
    return "R" if rows.index else "T"


def _take(spec: Take) -> Cost:
    return Cost(_rows(spec.rows), table_rows=spec.v)


def _linear(spec: Linear) -> Cost:
    flops = 2 * spec.heads * spec.n * spec.k * spec.rows.multiplier
    return Cost(_rows(spec.rows), _factors(spec.weight), row_flops=flops)


def _absorbed(spec: MlaAbsorbed) -> Cost:
    # A head compares with the latent row and the rotated key, then sums latent rows.
    pair = 2 * spec.heads * (2 * spec.paging.rank + spec.paging.d)
    return Cost(pair_flops=pair, cache_row_bytes=spec.paging.row_bytes)


def _materialized(spec: MlaMaterialized) -> Cost:
    paging = spec.paging
    return Cost(
        factors=INT8 if spec.group else FLOAT32,
        pair_flops=2 * spec.heads * (spec.nope + paging.d + spec.v),
        position_flops=2 * spec.heads * paging.rank * (spec.nope + spec.v),  # keys and values rebuilt
        cache_row_bytes=paging.row_bytes,
    )


def _index_topk(spec: IndexTopk) -> Cost:
    return Cost(pair_flops=2 * spec.heads * spec.paging.width, cache_row_bytes=spec.paging.row_bytes)


def _sparse(spec: MlaSparse) -> Cost:
    pair = 2 * spec.heads * (2 * spec.paging.rank + spec.paging.d)
    return Cost(pair_flops=pair, cache_row_bytes=spec.paging.row_bytes, chosen=spec.k)


def _experts(spec: MoeGateUp | MoeDown, products: int) -> Cost:
    order = spec.order
    return Cost(
        factors=_factors(spec.weight),
        row_flops=2 * order.per_token * products * spec.i * spec.d * order.rows.multiplier,
        experts=order.experts,
        top_k=order.top_k,
        shared=order.shared,
    )


def _moe_gate_up(spec: MoeGateUp) -> Cost:
    return _experts(spec, 2)


def _moe_down(spec: MoeDown) -> Cost:
    return _experts(spec, 1)


def _factors(weight: WeightFormat) -> str:
    return INT8 if weight.integer_products else FLOAT32


_RULES: Mapping[type, Callable[[Any], Cost]] = {
    IndexTopk: _index_topk,
    Linear: _linear,
    MlaAbsorbed: _absorbed,
    MlaMaterialized: _materialized,
    MlaSparse: _sparse,
    MoeDown: _moe_down,
    MoeGateUp: _moe_gate_up,
    Take: _take,
}
