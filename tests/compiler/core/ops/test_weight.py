from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import parse_type
from dsv3c.compiler.core.ops.weight import activation_group, decoded, format_of
from dsv3c.compiler.errors import Dsv3cError, TypeRuleError
from dsv3c.compiler.formats.quant import QTensor

RNG = np.random.default_rng(0)
INTEGER_FORMATS = ("int8", "int8-g32", "int4-g32", "int4-g64", "int4-g32-asym", "int2-g16")
FLOAT_FORMATS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def quantize(weight: Any, format: str) -> Any:
    return ops.lookup("quantize").evaluate(weight, format=format)


def pack(weight: Any) -> Any:
    return ops.lookup("pack").evaluate(weight, layout="rows16")


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("format", INTEGER_FORMATS)
def test_a_quantised_weight_decodes_as_code_minus_zero_times_scale(format: str) -> None:
    stored = quantize(normal(2, 3, 70), format)
    assert isinstance(stored, QTensor)
    group = stored.codes.shape[-1] // stored.scale.shape[-1]
    zero = {"int8": 128, "int4": 8, "int2": 2}[format[:4]]
    values = decoded(stored)
    assert values.dtype == np.float32
    assert values.shape == (2, 3, 70)
    for e, n, k in np.ndindex(2, 3, 70):
        z = zero if stored.zero is None else int(stored.zero[e, n, k // group])
        expected = np.float32(int(stored.codes[e, n, k]) - z) * np.float32(stored.scale[e, n, k // group])
        assert values[e, n, k] == expected


@pytest.mark.parametrize(("format", "dtype"), FLOAT_FORMATS.items())
def test_a_float_format_is_a_cast(format: str, dtype: Any) -> None:
    weight = normal(3, 5)
    stored = quantize(weight, format)
    assert stored.dtype == dtype
    assert np.array_equal(decoded(stored), weight.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("format", [*INTEGER_FORMATS, *FLOAT_FORMATS])
def test_packing_does_not_change_what_a_weight_stands_for(format: str) -> None:
    stored = quantize(normal(2, 17, 33), format)
    assert np.array_equal(decoded(pack(stored)), decoded(stored))


def test_quantised_activations_are_within_half_a_step() -> None:
    x = normal(3, 2, 40)
    rows = ops.lookup("quantize_rows").evaluate(x, group=32)
    assert rows.data.shape == (3, 2, 64)
    assert not rows.data[..., 40:].any()
    assert np.array_equal(rows.sum, rows.data.reshape(3, 2, 2, 32).sum(-1, dtype=np.int32))
    amax = np.abs(np.pad(x, [(0, 0), (0, 0), (0, 24)]).reshape(3, 2, 2, 32)).max(-1)
    np.testing.assert_allclose(rows.scale, amax / 127, rtol=1e-6)
    error = np.abs(decoded(rows) - x)
    assert (error <= np.repeat(rows.scale, 32, axis=-1)[..., :40] * 0.5001).all()


@pytest.mark.parametrize("format", [*INTEGER_FORMATS, *FLOAT_FORMATS])
def test_the_format_of_a_type_is_read_from_its_dtype(format: str) -> None:
    weight = ops.leaf("param", "w", parse_type("f32[4, 32]"))
    value = ops.apply("quantize", (weight,), {"format": format})
    assert format_of(value.type).name == format


def test_the_group_of_an_activation_is_read_from_its_dtype() -> None:
    assert activation_group(parse_type("q8-g64[T, 64]")) == 64
    assert [activation_group(parse_type(f"{dtype}[4, 64]")) for dtype in ("f32", "int8", "int8-g64")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("op", "type", "attrs", "reason"),
    [
        ("quantize", "f32[4]", {"format": "int8"}, r"a weight is f32\[..., N, K\]"),
        ("quantize", "bf16[4, 4]", {"format": "int8"}, r"a weight is f32\[..., N, K\]"),
        ("pack", "int8[4, 4]@rows16", {"layout": "rows16"}, "the weight is packed already"),
        ("pack", "int5-g32[4, 32]", {"layout": "nbits"}, "the layout 'nbits' has no weights in int5-g32"),
        ("quantize_rows", "bf16[T, 4]", {"group": 32}, "activations are f32"),
    ],
)
def test_wrong_operands_are_refused_with_a_reason(op: str, type: str, attrs: dict[str, Any], reason: str) -> None:
    with pytest.raises(TypeRuleError, match=reason):
        ops.apply(op, (ops.leaf("param", "w", parse_type(type)),), attrs)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(Dsv3cError, match="int3"):
        ops.apply("quantize", (ops.leaf("param", "w", parse_type("f32[4, 4]")),), {"format": "int3"})
