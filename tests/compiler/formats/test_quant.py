import numpy as np
import pytest

from dsv3c.compiler.formats.elements import NUMPY_DTYPES, as_float32
from dsv3c.compiler.formats.quant import quantize
from dsv3c.compiler.formats.table import WeightFormat

INTEGER_FORMATS = [
    "int8",
    "int8-asym",
    "int8-tensor",
    "int4-channel",
    "int2-tensor-asym",
    *(f"int{bits}-g32" for bits in (8, 6, 5, 4, 3, 2)),
    *(f"int{bits}-g{group}-asym" for bits, group in ((8, 128), (6, 64), (5, 16), (4, 32), (3, 64), (2, 16))),
    *(f"int4-g{group}" for group in (16, 64, 128)),
]


@pytest.mark.parametrize("name", INTEGER_FORMATS)
@pytest.mark.parametrize("shape", [(3, 31), (2, 5, 128), (17, 129), (1, 1)])
def test_rounding_error_is_at_most_half_a_step(name, shape):
    spec = WeightFormat.parse(name)
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    q = quantize(w, spec)
    assert q.codes.shape == (*shape[:-1], spec.padded_k(shape[-1]))
    assert q.scale.shape == (*shape[:-1], spec.scale_groups(shape[-1]))
    step = np.abs(q.scale.astype(np.float32)).max()
    # Symmetric codes below int8 have none for the far end of their short side: the error there reaches a whole step.
    worst = 1.0 if spec.grid.bits < 8 and not spec.grouping.zero else 0.51
    assert np.abs(q.dequantize() - w).max() <= worst * step


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_zero_rows_and_padding_decode_to_zero(name):
    w = np.zeros((4, 33), np.float32)
    w[1, 5] = -2.5
    w[2] = 1e-30
    q = quantize(w, WeightFormat.parse(name))
    decoded = type(q)(q.codes, q.scale, q.zero, q.format, q.codes.shape[-1]).dequantize()
    assert not decoded[[0, 3]].any()
    assert np.abs(decoded[2]).max() < 1e-29
    assert not decoded[1, 33:].any()
    np.testing.assert_allclose(decoded[1, 5], -2.5, rtol=1e-3)


@pytest.mark.parametrize("name", ["int8-tensor", "int4-tensor-asym"])
def test_a_matrix_has_one_scale_for_all_channels_found_by_its_largest(name):
    w = np.random.default_rng(2).standard_normal((3, 5, 70000)).astype(np.float32)
    w[:, 2, 69999] = 40, -30, 20
    q = quantize(w, WeightFormat.parse(name))
    assert q.scale.shape == (3, 5, 1) and (q.scale == q.scale[:, :1]).all()
    assert q.zero is None or (q.zero == q.zero[:, :1]).all()
    assert len(set(np.abs(q.scale[:, 0, 0]))) == 3
    assert (np.abs(q.dequantize() - w).max(axis=(1, 2)) <= 0.51 * np.abs(q.scale[:, 0, 0])).all()


def test_bfloat16_input_is_widened_exactly():
    w = np.random.default_rng(1).standard_normal((5, 64)).astype(NUMPY_DTYPES["bf16"])
    np.testing.assert_array_equal(as_float32(w), w.astype(np.float32))
    spec = WeightFormat.parse("int4-g32")
    np.testing.assert_array_equal(quantize(w, spec).codes, quantize(w.astype(np.float32), spec).codes)


@pytest.mark.parametrize("name", [name for name in INTEGER_FORMATS if "-g" in name])
@pytest.mark.parametrize("magnitude", 2.0 ** np.arange(-24, -6, 1.4))
def test_small_groups_are_met_as_well_as_the_steps_of_float16_allow(name, magnitude):
    """A scale of float16 moves in steps of 2^-24: none may become 0 under weights, none fall short of its largest."""
    spec = WeightFormat.parse(name)
    rng = np.random.default_rng(3)
    w = (rng.uniform(-1, 1, (8, max(32, spec.grouping.size))) * magnitude).astype(np.float32)
    w[:, 0] = magnitude
    q = quantize(w, spec)
    scale = np.abs(q.scale.astype(np.float32))
    exact = magnitude * 2 / spec.grid.highest if spec.grouping.zero else magnitude / spec.largest
    assert scale.all()
    assert scale.max() <= max(exact * 1.01, exact + 2**-24)
    # A scale may fall short by 1/256, which a code of `largest` makes so many steps.
    worst = (0.51 if spec.grid.bits == 8 or spec.grouping.zero else 1) + spec.largest / 256
    assert np.abs(q.dequantize() - w).max() <= worst * scale.max()
