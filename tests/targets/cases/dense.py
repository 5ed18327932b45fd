"""linear, head_linear, norm, rope, embedding, elementwise and quantize_rows in plain numpy."""

import numpy as np

from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats import quant, rows16
from dsv3c.compiler.formats.activations import quantize_rows
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.elementwise import Add, Concat, ScaleRows, Swiglu
from dsv3c.targets.calls.embedding import Take
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.norm import RmsNorm
from dsv3c.targets.calls.operands import Rows, View
from dsv3c.targets.calls.quantize import QuantizeRows
from dsv3c.targets.calls.rope import Rope, RopeTable

FORMATS = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8-g32",
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g32-asym",
    "int5-g32",
    "int5-g64",
]
# With those above every plane, group and kind of zero is there: groups of half a unit, and one zero for all of K, too.
FURTHER = ["int8-asym", "int6-g32", "int5-g16", "int4-tensor", "int3-g128", "int3-g16-asym", "int2-g16"]
ONE_OF_EACH = ["float32", "int8", "int4-g32-asym"]
BOUND = 18
F32 = 3e-6


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def control(tokens, rows=0):
    out = np.zeros(16, np.int32)
    out[:2] = tokens, rows
    return out


def dequantized(data, scale, group):
    return (data.reshape(*scale.shape, group) * scale[..., None]).reshape(data.shape)


def linear_case(name, t, n, k, heads=1, view=None, multiplier=1, bound=BOUND):
    """A case of Linear. Integer formats multiply the rounded activations, so only float addition differs."""
    spec = WeightFormat.parse(name)
    w = normal(heads, n, k)
    stored = quant.stored(w, spec)
    weight = decoded(stored)
    m = t * multiplier
    x = normal(m, heads, k)
    inputs = {"control": control(t)}
    if spec.integer_products:
        data, scale, total = quantize_rows(x, spec.grouping.activations)
        inputs |= {"x.data": data, "x.scale": scale, "x.sum": total}
        x = dequantized(data, scale, spec.grouping.activations)[..., :k]
    elif view is None:
        inputs["x"] = x
    else:
        wide = normal(m, view.row_stride)
        rows = [[wide[r, view.offset + h * view.head_stride :][:k] for h in range(heads)] for r in range(m)]
        x, inputs["x"] = np.array(rows).reshape(m, heads, k), wide
    inputs |= {f"w.{part}": array for part, array in rows16.pack(stored, spec).items()}
    expected = np.einsum("mhk,hnk->mhn", x.astype(np.float64), weight.astype(np.float64))
    op = Linear(Rows(bound, multiplier=multiplier), n, k, spec, heads, view)
    return op, inputs, {"y": expected}, F32


def rms_case(t, d, view=None):
    view_ = view or View(d)
    x, weight = normal(t, view_.row_stride), normal(d)
    rows = x[:, view_.offset :][:, :d].astype(np.float64)
    y = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5) * weight
    return RmsNorm(Rows(BOUND), d, 1e-5, view), {"control": control(t), "x": x, "weight": weight}, {"y": y}, F32


def quantize_case(t, k, group, heads=1, view=None):
    x = normal(t, heads, k) if view is None else normal(t, view.row_stride)
    if view is not None:
        rows = [[x[r, view.offset + h * view.head_stride :][:k] for h in range(heads)] for r in range(t)]
        values = np.array(rows).reshape(t, heads, k)
    else:
        x[0] = 0
        values = x
    data, scale, total = quantize_rows(values, group)
    expected = {"y.data": data, "y.scale": scale, "y.sum": total}
    return QuantizeRows(Rows(BOUND), k, group, heads, view), {"control": control(t), "x": x}, expected, 1e-7


def rope_case(t, heads, d, interleave, view=None):
    view_ = view or View(heads * d, head_stride=d)
    x, table = normal(t, view_.row_stride), normal(t, d)
    heads_of = [x[:, view_.offset + h * view_.head_stride :][:, :d] for h in range(heads)]
    rows = np.stack(heads_of, axis=1)
    first, second = (rows[..., 0::2], rows[..., 1::2]) if interleave else np.split(rows, 2, -1)
    cos, sin = np.split(table[:, None], 2, -1)
    y = np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return Rope(Rows(BOUND), heads, d, interleave, view), {"control": control(t), "x": x, "table": table}, {"y": y}, F32


def rope_table_case(t, d):
    positions = np.array([0, 1, 4095, 163839, 77][:t], np.int32)
    inv_freq = (1e4 ** -(np.arange(0, d, 2) / d)).astype(np.float32)
    angles = (positions[:, None].astype(np.float32) * inv_freq).astype(np.float64)
    y = np.concatenate([np.cos(angles), np.sin(angles)], -1) * 1.25
    inputs = {"control": control(t), "positions": positions, "inv_freq": inv_freq}
    return RopeTable(Rows(BOUND), d, 1.25), inputs, {"y": y}, F32


def take_case(element, m, v, d):
    table, ids = normal(v, d), np.arange(m, dtype=np.int32) * 7 % v
    inputs = {"control": control(0, m), "ids": ids}
    if element == "i8":
        data, scale, _ = quantize_rows(table, d)
        inputs |= {"table.data": data, "table.scale": scale}
        table = data * scale
    else:
        table = table.astype(NUMPY_DTYPES[element])
        inputs["table"] = table
    return Take(Rows(BOUND, index=1), v, d, element), inputs, {"y": table[ids].astype(np.float32)}, 1e-7


def elementwise_cases(t, d):
    a, b, wide = normal(t, d), normal(t, d + 1)[:, :d].copy(), normal(t, 2 * d) * 4
    gate, up = np.split(wide.astype(np.float64), 2, -1)
    rows, c = Rows(BOUND), control(t)
    yield f"add-t{t}-d{d}", (Add(rows, d), {"control": c, "a": a, "b": b}, {"y": a + b}, 0)
    yield f"swiglu-t{t}-d{d}", (Swiglu(rows, d), {"control": c, "x": wide}, {"y": gate / (1 + np.exp(-gate)) * up}, F32)
    both = {"control": c, "a": a, "b": wide}
    yield f"concat-t{t}-d{d}", (Concat(rows, d, 2 * d), both, {"y": np.concatenate([a, wide], -1)}, 0)


def scale_rows_case(t, d, view=None):
    view_ = view or View(d)
    x, factors = normal(t, view_.row_stride), np.array([1, 1.25, 0.5], np.float32)
    positions = np.array([0, 6, 7, 13, 14, 21, 700][:t], np.int32)  # the last are behind the last block of 7
    y = x[:, view_.offset :][:, :d] * factors[np.minimum(positions // 7, 2)][:, None]
    inputs = {"control": control(t), "x": x, "factors": factors, "positions": positions}
    return ScaleRows(Rows(BOUND), d, 3, 7, view), inputs, {"y": y}, 1e-7


def all_cases():
    for name in FORMATS:
        for n, k, tokens in [(17, 129, (0, 1, 3, 4, 5)), (272, 160, (1, 17, 18))]:
            for t in tokens:
                yield f"linear-{name}-t{t}-n{n}-k{k}", linear_case(name, t, n, k)
    for name in FURTHER:
        for t, n, k in [(1, 17, 129), (5, 33, 176)]:
            yield f"linear-{name}-t{t}-n{n}-k{k}", linear_case(name, t, n, k)
    for name in ONE_OF_EACH:
        for t in (1, 5):
            yield f"linear-{name}-t{t}-n15-k31", linear_case(name, t, 15, 31)
            yield f"head-{name}-t{t}", linear_case(name, t, 17, 64, heads=5)
    yield "rows-of-heads", linear_case("int4-g32", 2, 20, 40, multiplier=3)
    view = View(5 * 192 + 7, offset=128 + 7, head_stride=192)
    yield "head-view", linear_case("float32", 3, 40, 64, heads=5, view=view)
    yield "linear-view", linear_case("bfloat16", 6, 40, 63, view=View(100, offset=9))
    for t, d in [(1, 2048), (3, 15), (18, 17), (0, 16)]:
        yield f"rms-t{t}-d{d}", rms_case(t, d)
    yield "rms-view", rms_case(4, 512, View(576, offset=3))
    for t, k, group in [(1, 128, 128), (5, 31, 32), (18, 2049, 32), (3, 129, 128), (2, 320, 64), (3, 65, 16)]:
        yield f"quantize-t{t}-k{k}-g{group}", quantize_case(t, k, group)
    yield "quantize-view", quantize_case(3, 64, 32, heads=5, view=view)
    for interleave in (False, True):
        yield f"rope-{interleave}", rope_case(5, 5, 64, interleave)
        yield f"rope-odd-{interleave}", rope_case(2, 1, 22, interleave)
        yield f"rope-view-{interleave}", rope_case(3, 5, 64, interleave, view)
    yield "rope-table", rope_table_case(5, 64)
    for element in ("f32", "f16", "bf16", "i8"):
        yield f"take-{element}", take_case(element, 7, 50, 67)
    yield from elementwise_cases(3, 37)
    yield from elementwise_cases(18, 2048)
    for t, d in [(0, 5), (1, 1), (7, 37), (7, 64)]:
        yield f"scale-rows-t{t}-d{d}", scale_rows_case(t, d)
    yield "scale-rows-view", scale_rows_case(5, 33, View(48, 3))


CASES = dict(all_cases())
