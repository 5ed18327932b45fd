import numpy as np
import pytest

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.formats.quant import NUMPY_DTYPES, QuantSpec, as_float32, quantize, quantize_rows

INTEGER_FORMATS = [
    "int8",
    *(f"int{bits}-g{group}" for bits in (8, 4) for group in (32, 64, 128)),
    *(f"int4-g{group}-asym" for group in (32, 64, 128)),
]
FLOAT_FORMATS = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("name", INTEGER_FORMATS + FLOAT_FORMATS)
def test_name_parses_back(name):
    assert QuantSpec.parse(name).name == name


@pytest.mark.parametrize("text", ["int4", "int8-g32-asym", "int4-g48", "int3-g32", "fp8-g64", "", "int8-asym"])
def test_unknown_formats_are_refused(text):
    with pytest.raises(Dsv3cError, match="unknown weight format"):
        QuantSpec.parse(text)


def test_bits_per_weight_counts_scales():
    assert QuantSpec.parse("int4-g32").bits_per_weight() == 4.5
    assert QuantSpec.parse("int4-g32-asym").bits_per_weight() == 4.75
    assert QuantSpec.parse("bfloat16").bits_per_weight() == 16


@pytest.mark.parametrize("name", INTEGER_FORMATS)
@pytest.mark.parametrize("shape", [(3, 31), (2, 5, 128), (17, 129), (1, 1)])
def test_rounding_error_is_at_most_half_a_step(name, shape):
    spec = QuantSpec.parse(name)
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    q = quantize(w, spec)
    assert q.codes.shape == (*shape[:-1], spec.padded_k(shape[-1]))
    assert q.scale.shape == (*shape[:-1], spec.scale_groups(shape[-1]))
    step = np.abs(q.scale.astype(np.float32)).max()
    # Symmetric int4 has no code for the far end of its short side: the error there reaches a whole step.
    worst = 1.0 if spec.bits == 4 else 0.51
    assert np.abs(q.dequantize() - w).max() <= worst * step


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_zero_rows_and_padding_decode_to_zero(name):
    w = np.zeros((4, 33), np.float32)
    w[1, 5] = -2.5
    w[2] = 1e-30
    q = quantize(w, QuantSpec.parse(name))
    decoded = type(q)(q.codes, q.scale, q.zero, q.spec, q.codes.shape[-1]).dequantize()
    assert not decoded[[0, 3]].any()
    assert np.abs(decoded[2]).max() < 1e-29
    assert not decoded[1, 33:].any()
    np.testing.assert_allclose(decoded[1, 5], -2.5, rtol=1e-3)


def test_bfloat16_input_is_widened_exactly():
    w = np.random.default_rng(1).standard_normal((5, 64)).astype(NUMPY_DTYPES["bf16"])
    np.testing.assert_array_equal(as_float32(w), w.astype(np.float32))
    spec = QuantSpec.parse("int4-g32")
    np.testing.assert_array_equal(quantize(w, spec).codes, quantize(w.astype(np.float32), spec).codes)


@pytest.mark.parametrize("k", [1, 31, 32, 100])
def test_quantize_rows(k):
    x = np.random.default_rng(2).standard_normal((3, k)).astype(np.float32)
    x[1] = 0
    data, scale, total = quantize_rows(x, 32)
    assert data.shape == (3, -(-k // 32) * 32) and not data[:, k:].any()
    np.testing.assert_array_equal(total, data.reshape(3, -1, 32).sum(-1))
    decoded = (data.reshape(3, -1, 32) * scale[..., None]).reshape(3, -1)[:, :k]
    assert np.abs(decoded - x).max() <= 0.501 * scale.max()
    assert not decoded[1].any()


@pytest.mark.parametrize("name", [name for name in INTEGER_FORMATS if "-g" in name])
@pytest.mark.parametrize("magnitude", 2.0 ** np.arange(-24, -6, 1.4))
def test_small_groups_are_met_as_well_as_the_steps_of_float16_allow(name, magnitude):
    """A scale of float16 moves in steps of 2^-24: none may become 0 under weights, none fall short of its largest."""
    spec = QuantSpec.parse(name)
    rng = np.random.default_rng(3)
    w = (rng.uniform(-1, 1, (8, spec.group)) * magnitude).astype(np.float32)
    w[:, 0] = magnitude
    q = quantize(w, spec)
    scale = np.abs(q.scale.astype(np.float32))
    exact = magnitude / {"int8": 127, "int4": 8}[name[:4]] * (1 if spec.symmetric else 16 / 15)
    assert scale.all()
    assert scale.max() <= max(exact * 1.01, exact + 2**-24)
    # A scale may fall short by 1/256: with a code of 8 or 15 by 0.03 or 0.06 steps.
    worst = 0.51 if spec.bits == 8 else 1.04 if spec.symmetric else 0.57
    assert np.abs(q.dequantize() - w).max() <= worst * scale.max()
