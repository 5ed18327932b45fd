"""Cases for products of many rows whose factors a unit of matrix instructions rounds in its own way."""

import numpy as np

from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats import quant, rows16
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows, View
from dsv3c.targets.gpu.kernels import stages
from tests.targets.cases.dense import control, normal
from tests.targets.cases.moe import moe_case, order_of, some_ids, stored_weight
from tests.targets.gpu.op_tests import with_float_activations

BOUND = 130
FORMATS = (
    "bfloat16",
    "float16",
    "fp8",
    "int8",
    "int8-g64",
    "int4-g32",
    "int4-g32-asym",
    "int4-g128",
    "int5-g32",
    "mxfp4",
    "nf4-g64",
)
SIZES = ((1, 17, 31), (65, 130, 129), (18, 64, 160))  # tokens, N, K


def product(x, w):
    """x [t, heads, k] times w [heads, n, k] in float64: [t, heads, n]."""
    return np.einsum("mhk,hnk->mhn", x.astype(np.float64), w)


def linear_case(name, t, n, k, heads=1, view=None, x=None, w=None):
    """(spec, inputs, x f32 [t, heads, k], weight f64 [heads, n, k] as it is stored); given x f32 [t, K'], w f32."""
    spec = WeightFormat.parse(name)
    w = normal(heads, n, k) if w is None else w
    stored = quant.stored(w, spec)
    weight = decoded(stored).astype(np.float64)
    wide = normal(t, view.row_stride if view else heads * k) if x is None else x
    starts = [view.start(0, head) if view else head * k for head in range(heads)]
    inputs = {"control": control(t), "x": wide}
    inputs |= {f"w.{part}": array for part, array in rows16.pack(stored, spec).items()}
    x = np.stack([wide[:, start : start + k] for start in starts], 1)
    return Linear(Rows(BOUND), n, k, spec, heads, view), inputs, x, weight


def linear_cases(case):
    """By name what `case` makes of a format, tokens, N, K and maybe heads and a view."""
    found = {f"{name}-t{t}-n{n}-k{k}": case(name, t, n, k) for name in FORMATS for t, n, k in SIZES}
    # Groups of half a step.
    found |= {f"halves-{name}": case(name, 66, 33, 176) for name in ("int3-g16", "int2-g16-asym")}
    found |= {f"heads-{name}": case(name, 20, 40, 64, heads=3) for name in ("bfloat16", "int4-g32")}
    found["view"] = case("bfloat16", 66, 20, 63, view=View(100, offset=9))
    found["head-view"] = case("int8", 17, 40, 64, heads=3, view=View(3 * 96 + 7, offset=39, head_stride=96))
    found["no-rows"] = case("bfloat16", 0, 17, 32)
    return found


def expert_cases(*rounding):
    """By name `expert_case` of both products."""
    return {
        f"{op.__name__}-{name}-t{t}": expert_case(op, name, t, *rounding)
        for op in (MoeGateUp, MoeDown)
        for name, t in (("bfloat16", 1), ("bfloat16", 130), ("int8", 17), ("int4-g32-asym", 100))
    }


def expert_case(op, name, t, rounded, rounded_weight=lambda spec, w: w):
    """(spec, inputs, expected of the first stage): pairs of three experts, more than a tile has of one of them."""
    d, i = 48, 33
    spec, inputs, _, _ = moe_case(op, name, t, d, i, 3, 2, 1, bound=BOUND)
    inputs = with_float_activations(inputs, spec)
    _, experts = order_of(some_ids(t, 3, 2), 3, 1)
    parts = 2 if op is MoeGateUp else 1
    shape = (4, 2, i, d) if op is MoeGateUp else (4, d, i)
    _, w = stored_weight(normal(*shape), spec.weight)
    w = rounded_weight(spec.weight, w).reshape(4, parts, *shape[-2:])
    x = rounded(inputs["x"])[np.arange(experts.size) // 3 if op is MoeGateUp else slice(None)]
    sums = np.einsum("pk,phnk->hpn", x, w[experts])
    y = sums[0] / (1 + np.exp(-sums[0])) * sums[1] if parts == 2 else sums[0]
    return stages(spec)[0], inputs, {"y" if parts == 2 else "scratch": y}


def spread(rows, columns):
    """Normal numbers, whose rows are of very different sizes: 1e6, 1e-6, 1, all zero, and 1 beside one of 1e6."""
    x = normal(rows, columns) * np.float32([1e6, 1e-6, 1, 0, 1])[np.arange(rows) % 5, None]
    x[4::5, columns // 2] = 1e6
    return x
