"""Routing in plain ONNX operators, and the mixture of experts by the contrib ops MoE and QMoE.

The contrib ops choose experts themselves, by rules of their own. So routing is done before, and they are told its
outcome: a matrix that marks the chosen experts, of which they take the top k, and one with the mixing weights. Shared
experts are further experts that every token chooses with weight 1. A token that chose fewer than k, since some of its
ids are no expert's, is given others with weight 0: the contrib ops know no other way.
"""

from __future__ import annotations

from typing import Any

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.formats.nbits import bits_of
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.onnx.builder import CONTRIB, packed, requantised, sizes, source
from dsv3c.targets.onnx.lower import Lowering, gated, matmul_nbits, scales

SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}
TINY = {"f32": 1e-30, "f16": 6e-8}


def router(lowering: Lowering, value: Value) -> str:
    """Expert ids i64 [T, top_k]; see evaluate_router in compiler/core/ops/moe.py."""
    b, attrs = lowering.b, dict[str, Any](value.attrs)
    choice = _scores(lowering, value.inputs[0], attrs["scoring"])
    if len(value.inputs) == 2:
        bias = b.weight(value.inputs[1])
        choice = b.node("Add", choice, b.initializer(bias, "data", sizes(value.inputs[1].type)))
    experts, groups = int(value.inputs[0].shape[1]), attrs["n_group"]
    if groups > 1:
        grouped = b.reshape(choice, -1, groups, experts // groups)
        kept = _kept(lowering, grouped, groups, attrs["topk_group"], attrs["group_score"])
        choice = b.reshape(b.node("Where", kept, grouped, b.const(float("-inf"), "f32")), -1, experts)
    return _top_k(lowering, choice, attrs["top_k"])[1]


def _scores(lowering: Lowering, logits: Value, scoring: str) -> str:
    b = lowering.b
    if scoring == "sigmoid":
        return b.once(("scores", logits), lambda: b.node("Sigmoid", lowering[logits]))
    return b.once(("scores", logits), lambda: b.node("Softmax", lowering[logits], axis=-1))


def _top_k(lowering: Lowering, x: str, k: int) -> list[str]:
    """The k largest and where they are, along the last axis."""
    b = lowering.b
    name = b.node("Identity", b.ints(k))
    return b.nodes_out("TopK", (x, name), [f"{name}_values", f"{name}_indices"], axis=-1)


def _kept(lowering: Lowering, grouped: str, groups: int, count: int, group_score: str) -> str:
    """bool [T, groups, 1]: the best `count` groups of a token."""
    b = lowering.b
    if group_score == "top2":
        best = b.node("ReduceSum", _top_k(lowering, grouped, 2)[0], b.ints(-1), keepdims=0)
    else:
        best = b.node("ReduceMax", grouped, b.ints(-1), keepdims=0)
    ids = _top_k(lowering, best, count)[1]
    marked = _scattered(lowering, ids, _filled(lowering, 1.0, count, "f32"), groups, "f32")
    return b.reshape(b.cast(marked, "f32", "bool"), -1, groups, 1)


def _filled(lowering: Lowering, number: float, width: int, dtype: str) -> str:
    """[T, width] of one number."""
    b = lowering.b

    def make() -> str:
        shape = b.node("Concat", lowering.tokens(), b.ints(width), axis=0)
        return b.node("Expand", b.const([[number]], dtype), shape)

    return b.once(("filled", number, width, dtype), make)


def _scattered(lowering: Lowering, ids: str, values: str, size: int, dtype: str) -> str:
    """Zeros [T, size] with values [T, k] at ids [T, k]."""
    return lowering.b.node("ScatterElements", _filled(lowering, 0.0, size, dtype), ids, values, axis=1)


def router_weights(lowering: Lowering, value: Value) -> str:
    """Mixing weights [T, top_k], in float32; see evaluate_router_weights."""
    b, (logits, ids) = lowering.b, value.inputs
    weights = b.node("GatherElements", _scores(lowering, logits, str(value.attrs["scoring"])), lowering[ids], axis=-1)
    if value.attrs["norm_topk_prob"]:
        total = b.node("ReduceSum", weights, b.ints(-1), keepdims=1)
        weights = b.node("Div", weights, b.node("Add", total, b.const(1e-20, "f32")))
    return b.node("Mul", weights, b.const(value.attrs["scale"], "f32"))


def expert_weights(lowering: Lowering, value: Value) -> str:
    """Mixing weights, 0 for ids that are no expert's; see evaluate_expert_weights."""
    ids, weights = value.inputs
    return lowering.b.node("Where", _works(lowering, ids, value), lowering[weights], lowering.b.const(0.0, "f32"))


def identity_experts(lowering: Lowering, value: Value) -> str:
    """x times the other weights; see evaluate_identity_experts."""
    b, (x, ids, weights) = lowering.b, value.inputs
    others = b.node("Where", _works(lowering, ids, value), b.const(0.0, "f32"), lowering[weights])
    return b.node("Mul", lowering[x], b.cast(b.node("ReduceSum", others, b.ints(-1), keepdims=1), "f32"))


def _works(lowering: Lowering, ids: Value, value: Value) -> str:
    """bool [T, top_k]: whether an id is that of an expert."""
    return lowering.b.node("Less", lowering[ids], lowering.b.const(value.attrs["n_experts"], "i64"))


def _by_expert(lowering: Lowering, ids: Value, values: str, n_experts: int) -> str:
    """[T, n_experts] with values [T, k] at ids [T, k]; those of ids that are no expert's are left out."""
    b = lowering.b
    if int(ids.inputs[0].shape[1]) == n_experts:
        return _scattered(lowering, lowering[ids], values, n_experts, b.dtype)
    within = b.node("Min", lowering[ids], b.const(n_experts, "i64"))
    return b.slice(_scattered(lowering, within, values, n_experts + 1, b.dtype), 0, n_experts, 1)


def experts(lowering: Lowering, value: Value) -> str:
    """moe_down with the moe_gate_up and expert_order below it: [T, hidden_size]."""
    h, order, weights, down = value.inputs
    x, _, gate_up = h.inputs
    n_experts, n_shared = (int(order.attrs[key]) for key in ("n_experts", "n_shared"))  # type: ignore[arg-type]
    b, ids, top_k = lowering.b, order.inputs[0], int(weights.shape[1])
    mixed = b.cast(lowering[weights], "f32")
    mix = _with_shared(lowering, _by_expert(lowering, ids, mixed, n_experts), n_shared)
    formats = source(gate_up)[1], source(down)[1]
    if not any(format.has_codes for format in formats):
        return _moe(lowering, lowering[x], mix, gate_up, down, top_k + n_shared)
    if _one_by_one(formats, gate_up):
        return _each_expert(lowering, lowering[x], mix, gate_up, down)
    ones = _filled(lowering, 1.0, top_k, b.dtype)
    chosen = _with_shared(lowering, _by_expert(lowering, ids, ones, n_experts), n_shared)
    return _qmoe(lowering, lowering[x], chosen, mix, gate_up, down, top_k + n_shared)


def _with_shared(lowering: Lowering, routed: str, n_shared: int) -> str:
    if not n_shared:
        return routed
    return lowering.b.node("Concat", routed, _filled(lowering, 1.0, n_shared, lowering.b.dtype), axis=-1)


def _interleaved(gate_up: Value) -> Value:
    """[E', 2, I, D] -> [E', 2I, D] with gate and up row by row, as swiglu_fusion=1 wants it."""
    made_from, format = source(gate_up)
    n_experts, _, width, hidden = sizes(gate_up.type)
    rows = ops.apply("transpose", (made_from,), {"axes": (0, 2, 1, 3)})
    return requantised(ops.apply("reshape", (rows,), {"shape": (n_experts, 2 * width, hidden)}), format)


def _moe(lowering: Lowering, x: str, mix: str, gate_up: Value, down: Value, k: int) -> str:
    """MoE mixes by softmax alone. The softmax of log(w) is w / sum(w), so the result is multiplied by the sum."""
    b, first = lowering.b, _interleaved(gate_up)
    logits = b.node("Log", b.node("Max", mix, b.const(TINY[b.dtype])))
    operands = [b.floats(b.weight(weight), "data", sizes(weight.type)) for weight in (first, down)]
    attrs: dict[str, Any] = {"k": k, "normalize_routing_weights": 1, **SWIGLU}
    mixed = b.node("MoE", x, logits, operands[0], "", operands[1], domain=CONTRIB, **attrs)
    return b.node("Mul", mixed, b.node("ReduceSum", mix, b.ints(-1), keepdims=1))


def _one_by_one(formats: tuple[WeightFormat, WeightFormat], gate_up: Value) -> bool:
    """QMoE has codes alone, one number of bits, one size of groups, and none that reach beyond the end of a row."""
    if not all(format.has_codes for format in formats) or len({bits_of(format) for format in formats}) > 1:
        return True
    *_, width, hidden = sizes(gate_up.type)
    if any(format.padded_k(k) != k for format, k in zip(formats, (hidden, width), strict=True)):
        return True
    blocks = _blocks(formats)
    return len(blocks) > 1 or any(width % block or hidden % block for block in blocks)


def _blocks(formats: tuple[WeightFormat, WeightFormat]) -> set[int]:
    """The sizes of groups; one scale a channel without zero points goes with any."""
    own = {format.grouping.activations for format in formats if format.grouping.size or format.grouping.zero}
    return own or {format.grouping.activations for format in formats}


def _qmoe(lowering: Lowering, x: str, chosen: str, mix: str, gate_up: Value, down: Value, k: int) -> str:
    b, formats = lowering.b, (source(gate_up)[1], source(down)[1])
    bits, (block,) = bits_of(formats[0]), _blocks(formats)
    operands, zeros = [], []
    for weight in (_interleaved(gate_up), down):
        n_experts, n, width = sizes(weight.type)
        stored, groups = b.weight(packed(weight)), width // block
        data = b.initializer(stored, "data", (n_experts, n, width * bits // 8))
        operands += [data, scales(lowering, stored, (n_experts, n, groups)), ""]
        packed_groups = -(-groups * bits // 8)
        has_zeros = stored.format.grouping.zero is not None
        zeros.append(b.initializer(stored, "zero", (n_experts, n, packed_groups)) if has_zeros else "")
    attrs: dict[str, Any] = {
        "k": k,
        "expert_weight_bits": bits,
        "block_size": block,
        "normalize_routing_weights": 0,
        **SWIGLU,
    }
    if lowering.accuracy_level:  # versions before 1.31 do not know it
        attrs["accuracy_level"] = lowering.accuracy_level
    # Operands: input, router_probs, fc1 and fc2 (weights, scales, bias), fc3, zero points of the three, router_weights.
    operands = [x, chosen, *operands, "", "", "", *zeros, "", mix]
    return b.node("QMoE", *operands, domain=CONTRIB, **attrs)


def _each_expert(lowering: Lowering, x: str, mix: str, gate_up: Value, down: Value) -> str:
    """Every expert on every token, mixed by weights that are zero for experts not chosen: exact, and dense."""
    b, (n_experts, _, width, hidden) = lowering.b, sizes(gate_up.type)
    columns = b.split(mix, n_experts, axis=-1)
    total = ""
    for expert, column in enumerate(columns):
        gate, up = (
            _product(lowering, x, gate_up, (width, hidden), 2 * expert + half, 2 * n_experts) for half in (0, 1)
        )
        out = _product(lowering, gated(b, gate, up), down, (hidden, width), expert, n_experts)
        weighted = b.node("Mul", out, column)
        total = b.node("Add", total, weighted) if total else weighted
    return total


def _product(lowering: Lowering, x: str, weight: Value, shape: tuple[int, int], part: int, parts: int) -> str:
    """x [T, K] times the transposed `part`th of the `parts` matrices [N, K] of a weight."""
    b = lowering.b
    if source(weight)[1].has_codes:
        return matmul_nbits(lowering, x, b.weight(packed(weight)), *shape, part, parts)
    return b.node("MatMul", x, b.transpose(b.floats(b.weight(weight), "data", shape, part, parts), 1, 0))
