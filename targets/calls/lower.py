"""Which kernel an operation becomes: from an IR value to a kernel spec and the values in its operands' roles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dsv3c.compiler.core.ir import Dim, Value
from dsv3c.compiler.core.ops.weight import activation_group, format_of
from dsv3c.compiler.core.storage import dense_strides, strided
from dsv3c.compiler.formats.coded_rows import CodedRows
from dsv3c.targets.calls.attention import MlaAbsorbed, MlaMaterialized
from dsv3c.targets.calls.cache import MlaWrite, Paging
from dsv3c.targets.calls.elementwise import Add, Concat, ScaleRows, Swiglu
from dsv3c.targets.calls.embedding import Take
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.norm import RmsNorm
from dsv3c.targets.calls.operands import Rows, View
from dsv3c.targets.calls.plan import Bounds, KernelCall
from dsv3c.targets.calls.quantize import QuantizeRows
from dsv3c.targets.calls.rope import Rope, RopeTable
from dsv3c.targets.calls.router import ExpertOrder, ExpertWeights, IdentityExperts, Router, RouterWeights
from dsv3c.targets.calls.sparse import IndexTopk, IndexWrite, MlaSparse

_VIEWS = ("slice", "reshape")
_VIEWED = ("x", "k", "kv_a", "q_nope")  # roles that a spec's view is of
CONTROL_INDEX = {"T": 0, "R": 1}  # where the control buffer holds the size of a symbolic dim


def lower(value: Value, bounds: Bounds) -> KernelCall:
    """The kernel call for a value of phase "kernel"."""
    call = _RULES[value.op](value, bounds)
    viewed = _VIEWED if getattr(call.spec, "view", None) is not None else ()
    for role, source in call.roles.items():
        dense = role in viewed or source.op not in _VIEWS or _is_dense(source)
        assert dense, f"{role} of {value.op} must be contiguous"
    return call


def _is_dense(view: Value) -> bool:
    """Whether its rows lie one behind the other, as a kernel without a view reads them."""
    at = strided(view)
    return at.offset == 0 and at.strides == dense_strides(view.shape)


def rows_of(dim: Dim, bounds: Bounds) -> Rows:
    """Row count c*T or c*R as the kernels read it from the control buffer."""
    coefficient, _, name = str(dim).rpartition("*")
    return Rows(bounds[name], CONTROL_INDEX[name], int(coefficient or 1))


def view_of(value: Value) -> View:
    """Where the rows (and heads) of an activation lie in its owner's memory."""
    at = strided(value)
    return View(at.strides[0], at.offset, at.strides[1] if len(at.strides) == 3 else 0)


def _int(x: Any) -> int:
    assert isinstance(x, int)
    return x


def _float(value: Value, attr: str) -> float:
    number = value.attrs[attr]
    assert isinstance(number, float)
    return number


def _take(value: Value, bounds: Bounds) -> KernelCall:
    table, ids = value.inputs
    height = table.shape[0]
    v = height if isinstance(height, int) else bounds[height]
    element = "i8" if table.dtype == "int8" else table.dtype
    spec = Take(rows_of(ids.shape[0], bounds), v, _int(table.shape[1]), element)
    return KernelCall(spec, {"table": table, "ids": ids, "y": value})


def _rms_norm(value: Value, bounds: Bounds) -> KernelCall:
    x, weight = value.inputs
    spec = RmsNorm(rows_of(x.shape[0], bounds), _int(x.shape[-1]), _float(value, "eps"), view_of(x))
    return KernelCall(spec, {"x": x, "weight": weight, "y": value})


def _quantize_rows(value: Value, bounds: Bounds) -> KernelCall:
    (x,) = value.inputs
    heads = _int(x.shape[1]) if len(x.shape) == 3 else 1
    spec = QuantizeRows(rows_of(x.shape[0], bounds), _int(x.shape[-1]), activation_group(value.type), heads, view_of(x))
    return KernelCall(spec, {"x": x, "y": value})


def _linear(value: Value, bounds: Bounds) -> KernelCall:
    x, weight = value.inputs
    heads = _int(weight.shape[0]) if len(weight.shape) == 3 else 1
    view = None if activation_group(x.type) else view_of(x)
    n, k = _int(weight.shape[-2]), _int(weight.shape[-1])
    spec = Linear(rows_of(x.shape[0], bounds), n, k, format_of(weight.type), heads, view)
    return KernelCall(spec, {"x": x, "w": weight, "y": value})


def _rope_table(value: Value, bounds: Bounds) -> KernelCall:
    positions, inv_freq = value.inputs
    spec = RopeTable(rows_of(positions.shape[0], bounds), _int(value.shape[-1]), _float(value, "scale"))
    return KernelCall(spec, {"positions": positions, "inv_freq": inv_freq, "y": value})


def _rope(value: Value, bounds: Bounds) -> KernelCall:
    x, table = value.inputs
    interleave, d = bool(value.attrs["interleave"]), _int(table.shape[1])
    rows, rest = rows_of(x.shape[0], bounds), _int(x.shape[2]) - d
    spec = Rope(rows, _int(x.shape[1]), d, interleave, view_of(x), rest)
    return KernelCall(spec, {"x": x, "table": table, "y": value})


def _add(value: Value, bounds: Bounds) -> KernelCall:
    a, b = value.inputs
    spec = Add(rows_of(value.shape[0], bounds), _int(value.shape[-1]))
    return KernelCall(spec, {"a": a, "b": b, "y": value})


def _scale_rows(value: Value, bounds: Bounds) -> KernelCall:
    x, factors, positions = value.inputs
    rows, blocks = rows_of(x.shape[0], bounds), _int(factors.shape[0])
    spec = ScaleRows(rows, _int(x.shape[-1]), blocks, _int(value.attrs["block"]), view_of(x))
    return KernelCall(spec, {"x": x, "factors": factors, "positions": positions, "y": value})


def _concat(value: Value, bounds: Bounds) -> KernelCall:
    a, b = value.inputs
    spec = Concat(rows_of(value.shape[0], bounds), _int(a.shape[-1]), _int(b.shape[-1]))
    return KernelCall(spec, {"a": a, "b": b, "y": value})


def _swiglu(value: Value, bounds: Bounds) -> KernelCall:
    spec = Swiglu(rows_of(value.shape[0], bounds), _int(value.shape[-1]))
    return KernelCall(spec, {"x": value.inputs[0], "y": value})


def _paging(cache: Value, page_table: Value, rope_dim: int, page_size: Any, bounds: Bounds) -> Paging:
    sequences, pages = (bounds[str(dim)] for dim in page_table.shape)
    rank, coded = _int(cache.shape[-1]) - rope_dim, CodedRows.of_type(cache.dtype)
    element = coded.codes if coded else cache.dtype
    return Paging(sequences, pages, _int(page_size), rank, rope_dim, element)


def _mla_write(value: Value, bounds: Bounds) -> KernelCall:
    names = ("cache", "kv_a", "weight", "table", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    rope_dim = _int(roles["table"].shape[-1])
    paging = _paging(roles["cache"], roles["page_table"], rope_dim, value.attrs["page_size"], bounds)
    rows = rows_of(roles["kv_a"].shape[0], bounds)
    interleave = bool(value.attrs["interleave"])
    return KernelCall(MlaWrite(rows, paging, _float(value, "eps"), interleave, view_of(roles["kv_a"])), roles)


def _mla_absorbed(value: Value, bounds: Bounds) -> KernelCall:
    names = ("q_latent", "q_pe", "cache", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    rope_dim = _int(roles["q_pe"].shape[-1])
    paging = _paging(roles["cache"], roles["page_table"], rope_dim, value.attrs["page_size"], bounds)
    spec = MlaAbsorbed(rows_of(value.shape[0], bounds), _int(value.shape[1]), paging, _float(value, "scale"))
    return KernelCall(spec, roles | {"y": value})


def _mla_materialized(value: Value, bounds: Bounds) -> KernelCall:
    names = ("q_nope", "q_pe", "cache", "w_uk", "w_uv", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    heads, nope, _ = map(_int, roles["w_uk"].shape)
    rope_dim = _int(roles["q_pe"].shape[-1])
    spec = MlaMaterialized(
        rows_of(value.shape[0], bounds),
        heads=heads,
        nope=nope,
        v=_int(roles["w_uv"].shape[1]),
        paging=_paging(roles["cache"], roles["page_table"], rope_dim, value.attrs["page_size"], bounds),
        scale=_float(value, "scale"),
        weight=format_of(roles["w_uk"].type),
        view=view_of(roles["q_nope"]),
        group=_int(value.attrs.get("group", 0)),
    )
    return KernelCall(spec, roles | {"y": value})


def _index_write(value: Value, bounds: Bounds) -> KernelCall:
    names = ("cache", "k", "weight", "bias", "table", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    spec = IndexWrite(
        rows_of(roles["k"].shape[0], bounds),
        _paging(roles["cache"], roles["page_table"], 0, value.attrs["page_size"], bounds),
        rotated=_int(roles["table"].shape[-1]),
        eps=_float(value, "eps"),
        interleave=bool(value.attrs["interleave"]),
        view=view_of(roles["k"]),
    )
    return KernelCall(spec, roles)


def _index_topk(value: Value, bounds: Bounds) -> KernelCall:
    names = ("q", "weights", "cache", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    paging = _paging(roles["cache"], roles["page_table"], 0, value.attrs["page_size"], bounds)
    rows = rows_of(value.shape[0], bounds)
    return KernelCall(IndexTopk(rows, _int(roles["q"].shape[1]), _int(value.attrs["k"]), paging), roles | {"y": value})


def _mla_sparse(value: Value, bounds: Bounds) -> KernelCall:
    names = ("q_latent", "q_pe", "cache", "chosen", "positions", "sequence", "page_table")
    roles = dict(zip(names, value.inputs, strict=True))
    rope_dim = _int(roles["q_pe"].shape[-1])
    paging = _paging(roles["cache"], roles["page_table"], rope_dim, value.attrs["page_size"], bounds)
    rows, k = rows_of(value.shape[0], bounds), _int(roles["chosen"].shape[-1])
    return KernelCall(MlaSparse(rows, _int(value.shape[1]), k, paging, _float(value, "scale")), roles | {"y": value})


def _router(value: Value, bounds: Bounds) -> KernelCall:
    logits, *bias = value.inputs
    attrs = value.attrs
    spec = Router(
        rows_of(logits.shape[0], bounds),
        experts=_int(logits.shape[-1]),
        n_group=_int(attrs["n_group"]),
        topk_group=_int(attrs["topk_group"]),
        top_k=_int(attrs["top_k"]),
        scoring=str(attrs["scoring"]),
        group_score=str(attrs["group_score"]),
        has_bias=bool(bias),
    )
    return KernelCall(spec, {"logits": logits, "y": value} | ({"bias": bias[0]} if bias else {}))


def _router_weights(value: Value, bounds: Bounds) -> KernelCall:
    logits, ids = value.inputs
    spec = RouterWeights(
        rows_of(logits.shape[0], bounds),
        experts=_int(logits.shape[-1]),
        top_k=_int(ids.shape[-1]),
        scoring=str(value.attrs["scoring"]),
        norm_topk_prob=bool(value.attrs["norm_topk_prob"]),
        scale=_float(value, "scale"),
    )
    return KernelCall(spec, {"logits": logits, "ids": ids, "y": value})


def _expert_weights(value: Value, bounds: Bounds) -> KernelCall:
    ids, weights = value.inputs
    spec = ExpertWeights(rows_of(ids.shape[0], bounds), _int(value.attrs["n_experts"]), _int(ids.shape[-1]))
    return KernelCall(spec, {"ids": ids, "weights": weights, "y": value})


def _identity_experts(value: Value, bounds: Bounds) -> KernelCall:
    x, ids, weights = value.inputs
    experts, top_k = _int(value.attrs["n_experts"]), _int(ids.shape[-1])
    spec = IdentityExperts(rows_of(x.shape[0], bounds), _int(x.shape[-1]), experts, top_k, view_of(x))
    return KernelCall(spec, {"x": x, "ids": ids, "weights": weights, "y": value})


def _order_spec(order: Value, bounds: Bounds) -> ExpertOrder:
    (ids,) = order.inputs
    experts, shared = _int(order.attrs["n_experts"]), _int(order.attrs["n_shared"])
    return ExpertOrder(rows_of(ids.shape[0], bounds), experts, _int(ids.shape[-1]), shared)


def _expert_order(value: Value, bounds: Bounds) -> KernelCall:
    return KernelCall(_order_spec(value, bounds), {"ids": value.inputs[0], "y": value})


def _moe_gate_up(value: Value, bounds: Bounds) -> KernelCall:
    x, order, weight = value.inputs
    width, hidden = _int(weight.shape[-2]), _int(weight.shape[-1])
    spec = MoeGateUp(_order_spec(order, bounds), hidden, width, format_of(weight.type))
    return KernelCall(spec, {"x": x, "order": order, "w": weight, "y": value})


def _moe_down(value: Value, bounds: Bounds) -> KernelCall:
    x, order, weights, weight = value.inputs
    hidden, width = _int(weight.shape[-2]), _int(weight.shape[-1])
    spec = MoeDown(_order_spec(order, bounds), hidden, width, format_of(weight.type))
    return KernelCall(spec, {"x": x, "order": order, "weights": weights, "w": weight, "y": value})


_RULES: Mapping[str, Callable[[Value, Bounds], KernelCall]] = {
    "take": _take,
    "rms_norm": _rms_norm,
    "quantize_rows": _quantize_rows,
    "linear": _linear,
    "head_linear": _linear,
    "rope_table": _rope_table,
    "rope": _rope,
    "add": _add,
    "concat": _concat,
    "scale_rows": _scale_rows,
    "swiglu": _swiglu,
    "mla_write": _mla_write,
    "mla_absorbed": _mla_absorbed,
    "mla_materialized": _mla_materialized,
    "index_write": _index_write,
    "index_topk": _index_topk,
    "mla_sparse": _mla_sparse,
    "router": _router,
    "router_weights": _router_weights,
    "expert_weights": _expert_weights,
    "identity_experts": _identity_experts,
    "expert_order": _expert_order,
    "moe_gate_up": _moe_gate_up,
    "moe_down": _moe_down,
}
