"""From the operations of the IR to ONNX nodes, but for attention and experts, which have modules of their own.

Inside the graph the tokens of all sequences are one axis T = batch * sequence_length, as in the IR; only attention and
the cache see the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value
from dsv3c.compiler.formats.nbits import bits_of, blocks_of
from dsv3c.targets.onnx.builder import CONTRIB, Builder, PackedWeight, packed, requantised, sizes, source

END = 2**63 - 1


@dataclass
class Lowering:
    """The state while one graph is lowered.

    names: the ONNX value of each IR value that has one. rotary: of a rope_table its two, cos and sin.
    """

    b: Builder
    accuracy_level: int
    names: dict[Value, str] = field(default_factory=dict)
    rotary: dict[Value, tuple[str, str]] = field(default_factory=dict)

    def __getitem__(self, value: Value) -> str:
        return self.names[value]

    # --- sizes of this step, each a vector i64[1]

    def batch(self) -> str:
        return self.b.once("batch", lambda: self.b.node("Shape", "input_ids", start=0, end=1))

    def length(self) -> str:
        return self.b.once("length", lambda: self.b.node("Shape", "input_ids", start=1, end=2))

    def tokens(self) -> str:
        return self.b.once("tokens", lambda: self.b.node("Mul", self.batch(), self.length()))

    def shaped(self, x: str, *dims: str | int) -> str:
        """x reshaped; dims that are text are vectors i64[1] of the graph."""

        def shape() -> str:
            parts = [dim if isinstance(dim, str) else self.b.ints(dim) for dim in dims]
            return self.b.node("Concat", *parts, axis=0)

        return self.b.node("Reshape", x, self.b.once(("shape", dims), shape))


def linear(lowering: Lowering, x: str, weight: Value, dtype: str | None = None) -> str:
    """x [T, K] times a quantised weight [N, K] transposed. Floats are MatMul, integers MatMulNBits.

    dtype: the type of a float product, which x already has; the activations' by default.
    """
    b, (made_from, format) = lowering.b, source(weight)
    n, k = sizes(weight.type)
    if format.has_codes:
        return matmul_nbits(lowering, x, b.weight(packed(weight)), n, k)
    stored = b.weight(requantised(ops.apply("transpose", (made_from,), {"axes": (1, 0)}), format))
    data = b.cast(b.initializer(stored, "data", (k, n)), format.type_name, dtype)
    return b.node("MatMul", x, data)


def matmul_nbits(
    lowering: Lowering, x: str, stored: PackedWeight, n: int, k: int, part: int = 0, parts: int = 1
) -> str:
    """x [..., K] times the `part`th of `parts` packed matrices [N, K] that lie one after the other."""
    b, format, bits = lowering.b, stored.format, bits_of(stored.format)
    block = format.grouping.activations
    groups = blocks_of(format, k)
    inputs = [
        b.initializer(stored, "data", (n, groups, block * bits // 8), part, parts),
        scales(lowering, stored, (n, groups), part, parts),
    ]
    if format.grouping.zero:
        inputs.append(b.initializer(stored, "zero", (n, -(-groups * bits // 8)), part, parts))
    attrs: dict[str, Any] = {"K": k, "N": n, "bits": bits, "block_size": block}
    return b.node("MatMulNBits", x, *inputs, domain=CONTRIB, accuracy_level=lowering.accuracy_level, **attrs)


def scales(lowering: Lowering, stored: PackedWeight, shape: tuple[int, ...], part: int = 0, parts: int = 1) -> str:
    """Scales [..., N, groups]: those of the format, or where it has one a channel that one for each group.

    The contrib ops have no fast path for one scale a channel; ONNX Runtime folds the Expand at load.
    """
    b = lowering.b
    if stored.format.grouping.size:
        return b.floats(stored, "scale", shape, part, parts)
    one = b.floats(stored, "scale", (*shape[:-1], 1), part, parts)
    return b.once(("expand", one, shape), lambda: b.node("Expand", one, b.ints(*shape)))


def head_linear(lowering: Lowering, x: str, weight: Value) -> str:
    """x [T, H, K], weight [H, N, K] -> [T, H, N]."""
    b, (made_from, format) = lowering.b, source(weight)
    heads, n, k = sizes(weight.type)
    if not format.has_codes:
        stored = b.weight(requantised(ops.apply("transpose", (made_from,), {"axes": (0, 2, 1)}), format))
        product = b.node("MatMul", b.transpose(x, 1, 0, 2), b.floats(stored, "data", (heads, k, n)))
        return b.transpose(product, 1, 0, 2)
    # MatMulNBits has no batch of weights. A node a head costs less than reading the heads' weights as floats.
    stored = b.weight(packed(weight))
    pieces = b.split(b.reshape(x, -1, heads * k), heads, axis=-1)
    products = [matmul_nbits(lowering, piece, stored, n, k, head, heads) for head, piece in enumerate(pieces)]
    return b.reshape(b.node("Concat", *products, axis=-1), -1, heads, n)


def rotated(lowering: Lowering, x: str, heads: int, size: int, table: Value, interleave: bool) -> str:
    """RotaryEmbedding of x [T, heads * size], in its order of columns; see `_rope` for what the IR says."""
    b, (cos, sin), columns = lowering.b, lowering.rotary[table], int(table.shape[-1])
    first: dict[str, Any] = {"rotary_embedding_dim": columns} if columns < size else {}  # the others stay as they are
    flat = b.reshape(x, 1, -1, heads * size)
    return b.node("RotaryEmbedding", flat, cos, sin, interleaved=int(interleave), num_heads=heads, **first)


def weight_vector(lowering: Lowering, weight: Value) -> str:
    """A weight that is no matrix, such as a norm's, in the activations' type."""
    stored = lowering.b.weight(weight)
    return lowering.b.floats(stored, "data", sizes(weight.type))


# --- rules: what one IR value becomes -------------------------------------------------------------------------------


def _rms_norm(lowering: Lowering, value: Value) -> str:
    x, weight = value.inputs
    scale, eps = weight_vector(lowering, weight), value.attrs["eps"]
    return lowering.b.node("RMSNormalization", lowering[x], scale, axis=-1, epsilon=eps)


def _rope_table(lowering: Lowering, value: Value) -> str:
    """cos and sin [1, T, d/2], in float32 until they are done: angles at large positions have no room in float16."""
    b, (positions, inv_freq) = lowering.b, value.inputs
    column = b.reshape(b.cast(lowering[positions], "i64", "f32"), 1, -1, 1)
    angles = b.node("Mul", column, b.const(inv_freq.attrs["data"], "f32"))
    scale = b.const(value.attrs["scale"], "f32")
    cos, sin = (b.cast(b.node("Mul", b.node(op, angles), scale), "f32") for op in ("Cos", "Sin"))
    lowering.rotary[value] = cos, sin
    return cos


def _rope(lowering: Lowering, value: Value) -> str:
    """The result keeps the order of x where the IR's has first members, then second members of the pairs.

    Both the query and the key are read by scores alone, which do not see one order of columns for both.
    """
    x, table = value.inputs
    _, *inner = x.shape
    sizes = [int(dim) for dim in inner]
    heads = sizes[0] if len(sizes) == 2 else 1
    flat = rotated(lowering, lowering[x], heads, sizes[-1], table, bool(value.attrs["interleave"]))
    return lowering.b.reshape(flat, -1, *sizes)


def _swiglu(lowering: Lowering, value: Value) -> str:
    b = lowering.b
    gate, up = b.split(lowering[value.inputs[0]], 2, axis=-1)
    return gated(b, gate, up)


def gated(b: Builder, gate: str, up: str) -> str:
    """silu(gate) * up. ONNX Runtime fuses x * Sigmoid(x)."""
    return b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)


def _linear(lowering: Lowering, value: Value) -> str:
    return linear(lowering, lowering[value.inputs[0]], value.inputs[1])


def _head_linear(lowering: Lowering, value: Value) -> str:
    return head_linear(lowering, lowering[value.inputs[0]], value.inputs[1])


def _add(lowering: Lowering, value: Value) -> str:
    return lowering.b.node("Add", *(lowering[source] for source in value.inputs))


def _scale_rows(lowering: Lowering, value: Value) -> str:
    b, (x, factors, positions) = lowering.b, value.inputs
    block = b.node("Div", lowering[positions], b.const(value.attrs["block"], "i64"))
    which = b.node("Min", block, b.const(int(factors.shape[0]) - 1, "i64"))
    factor = b.node("Gather", b.const(factors.attrs["data"], "f32"), b.reshape(which, -1))
    return b.node("Mul", lowering[x], b.cast(b.reshape(factor, -1, 1), "f32"))


def _concat(lowering: Lowering, value: Value) -> str:
    return lowering.b.node("Concat", *(lowering[source] for source in value.inputs), axis=value.attrs["axis"])


def _reshape(lowering: Lowering, value: Value) -> str:
    return lowering.b.reshape(lowering[value.inputs[0]], *(-1 if isinstance(d, str) else d for d in value.shape))


def _slice(lowering: Lowering, value: Value) -> str:
    start, stop, axis = (int(value.attrs[key]) for key in ("start", "stop", "axis"))  # type: ignore[arg-type]
    return lowering.b.slice(lowering[value.inputs[0]], start, stop, axis)


def _take(lowering: Lowering, value: Value) -> str:
    table, ids = value.inputs
    return _embedding(lowering, table, lowering[ids]) if table.op == "quantize" else _last_rows(lowering, table)


def _embedding(lowering: Lowering, table: Value, ids: str) -> str:
    """Rows are gathered as they are stored, then decoded."""
    b, stored = lowering.b, lowering.b.weight(table)
    shape = sizes(table.type)
    rows = b.node("Gather", b.initializer(stored, "data", shape), ids)
    rows = b.cast(rows, stored.components["data"].dtype)
    if "scale" not in stored.components:
        return rows
    scale = b.node("Gather", b.initializer(stored, "scale", shape[:1]), ids)
    return b.node("Mul", rows, b.reshape(b.cast(scale, "f32"), -1, 1))


def _last_rows(lowering: Lowering, hidden: Value) -> str:
    """The last `num_logits_to_keep` tokens of each sequence, all when it is 0: a slice from -n, which is from 0."""
    b, width = lowering.b, int(hidden.shape[-1])
    apart = lowering.shaped(lowering[hidden], lowering.batch(), -1, width)
    start = b.reshape(b.node("Neg", "num_logits_to_keep"), 1)
    return b.reshape(b.node("Slice", apart, start, b.ints(END), b.ints(1)), -1, width)


Rule = Callable[[Lowering, Value], str]

RULES: Mapping[str, Rule] = {
    "rms_norm": _rms_norm,
    "rope_table": _rope_table,
    "rope": _rope,
    "swiglu": _swiglu,
    "linear": _linear,
    "head_linear": _head_linear,
    "add": _add,
    "concat": _concat,
    "scale_rows": _scale_rows,
    "reshape": _reshape,
    "slice": _slice,
    "take": _take,
}
