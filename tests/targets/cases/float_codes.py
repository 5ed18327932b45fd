"""Products with weights whose codes stand for floats."""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.quant import QTensor, quantize
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.calls.operands import Rows
from tests.targets.cases.attention import materialized_case
from tests.targets.cases.dense import F32, control, linear_case, normal
from tests.targets.cases.moe import activation, moe_case

K = 129  # whole groups of every size, and a column


def codes_of(name: str) -> np.ndarray:
    """Those that stand for a number."""
    grid = WeightFormat.parse(name).grid
    found = np.arange(1 << grid.bits, dtype=np.uint8)
    return found[np.isfinite(grid.values(found, None))]


def every_code_case(name: str) -> tuple:
    """Each number of the format, subnormal ones among them, times 1 alone; scales of any size."""
    spec, codes, k = WeightFormat.parse(name), codes_of(name), K
    n = codes.size
    own = np.full((n, spec.padded_k(k)), spec.zero_point, np.uint8)
    own[:, 3] = codes
    own[:, K - 1] = codes[::-1]
    scale = (np.abs(normal(n, spec.scale_groups(k))) * np.float32(1e-3)).astype(NUMPY_DTYPES[spec.grouping.scale])
    stored = QTensor(own, scale, None, spec, k)
    x = np.zeros((2, k), np.float32)
    x[[0, 1], [3, K - 1]] = 1
    inputs = {"control": control(2), **activation(x, spec)[0]}
    inputs |= {f"w.{part}": array for part, array in rows16.pack(stored, stored.format).items()}
    # As integers they are scaled by more than one factor that is rounded.
    tolerance = 5e-7 if spec.integer_products else 2e-7
    return Linear(Rows(18), n, k, spec), inputs, {"y": x @ stored.dequantize().T}, tolerance


def extremes_case(name: str, t: int) -> tuple:
    """The largest products that there are, in every column: as integers they are the largest sums, too."""
    spec = WeightFormat.parse(name)
    w, x = np.ones((16, K), np.float32), np.ones((t, K), np.float32)
    w[1::2] *= -1
    w[:, 1::3] *= -1
    stored = quantize(w * np.float32(spec.largest), spec)
    inputs = {"control": control(t), **activation(x, spec)[0]}
    inputs |= {f"w.{part}": array for part, array in rows16.pack(stored, spec).items()}
    return Linear(Rows(18), 16, K, spec), inputs, {"y": x @ stored.dequantize().T}, F32


def all_cases(name: str):
    yield "every-code", every_code_case(name)
    if WeightFormat.parse(name).integer_products:
        yield "extremes", extremes_case(name, 3)
    for t in (1, 5):
        yield f"linear-t{t}", linear_case(name, t, codes_of(name).size, K)
    yield "linear-t67", linear_case(name, 67, 33, 417, bound=67)  # more than is computed in one go
    yield "head-linear", linear_case(name, 5, 20, 96, heads=3)
    for op in (MoeGateUp, MoeDown):
        yield op.__name__, moe_case(op, name, 17, 129, 40, 6, 2, 1)
        yield f"{op.__name__}-t67", moe_case(op, name, 67, 129, 33, 2, 1, 1, bound=67)
    yield "materialized", materialized_case("ragged", 2, 24, 40, 130, 16, "bf16", name)


def rounded_case(name: str) -> tuple:
    """Latents in int8 where the format has integer products."""
    return materialized_case("ragged", 2, 24, 40, 130, 16, "bf16", name, rounded=True)


FORMATS = ("fp8", "mxfp4", "nf4-g64")
CASES = {f"{name}-{kind}": case for name in FORMATS for kind, case in all_cases(name)}
ROUNDED = CASES | {f"{name}-materialized": rounded_case(name) for name in FORMATS}
