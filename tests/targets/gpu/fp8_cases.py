"""Products with fp8 weights, which GPU kernels alone decode."""

from __future__ import annotations

import numpy as np

from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.targets.calls.linear import Linear
from dsv3c.targets.calls.moe import MoeDown, MoeGateUp
from dsv3c.targets.gpu.kernels.frame import Rows
from tests.targets.cases.attention import materialized_case
from tests.targets.cases.dense import control, linear_case, normal
from tests.targets.cases.moe import moe_case


def every_code_case():
    """Each number of the format, subnormal ones among them, times 1 alone; scales of any size."""
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)
    n, k = codes.size, 256
    own = np.zeros((n, k), np.uint8)
    own[:, 3] = codes
    own[:, 200] = codes[::-1]
    scale = np.abs(normal(n, 2)) * np.float32(1e-3)
    stored = QTensor(own, scale, None, WeightFormat.parse("fp8"), k)
    x = np.zeros((2, k), np.float32)
    x[[0, 1], [3, 200]] = 1
    inputs = {"control": control(2), "x": x}
    inputs |= {f"w.{part}": array for part, array in rows16.pack(stored, stored.format).items()}
    return Linear(Rows(18), n, k, stored.format), inputs, {"y": x @ stored.dequantize().T}, 1e-7


LINEARS = [(1, 17, 129), (5, 130, 256), (18, 65, 31)]
EXPERTS = [(op, t) for op in (MoeGateUp, MoeDown) for t in (1, 17)]

CASES = {
    "fp8-every-code": every_code_case(),
    **{f"fp8-linear-t{t}-n{n}-k{k}": linear_case("fp8", t, n, k) for t, n, k in LINEARS},
    "fp8-head-linear": linear_case("fp8", 5, 20, 128, heads=3),
    **{f"fp8-{op.__name__}-t{t}": moe_case(op, "fp8", t, 129, 40, 6, 2, 1) for op, t in EXPERTS},
    "fp8-materialized": materialized_case("ragged", 2, 24, 40, 130, 16, "bf16", "fp8"),
}
