import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.quant import quantize
from dsv3c.compiler.formats.table import WeightFormat

INTEGER_FORMATS = [
    "int8",
    "int8-g32",
    "int8-g64",
    "int4-g32",
    "int4-g64",
    "int4-g128",
    "int4-g32-asym",
    "int5-g32",
    "int5-g128",
    "int8-asym",
    "int6-g32-asym",
    "int4-tensor",
    "int3-g16",
    "int2-g16-asym",
]
CODED_FLOATS = ["fp8", "mxfp4", "nf4-g32", "nf4-g128"]
FLOAT_FORMATS = ["float32", "float16", "bfloat16"]
LEADING = st.lists(st.integers(1, 3), max_size=2).map(tuple)
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 129, 255]))


def random_weight(leading, n, k):
    return np.random.default_rng(n * 1000 + k).standard_normal((*leading, n, k)).astype(np.float32)


def check_types(packed, spec, leading, n, k):
    expected = rows16.component_types(spec, leading, n, k)
    assert list(packed) == list(expected)
    for name, (dtype, shape) in expected.items():
        assert (packed[name].dtype, packed[name].shape) == (NUMPY_DTYPES[dtype], shape)
        assert packed[name].flags.c_contiguous


@settings(max_examples=60)
@given(st.sampled_from([*INTEGER_FORMATS, *CODED_FLOATS]), LEADING, SIZES, SIZES)
def test_pack_of_codes_then_unpack_is_the_identity(name, leading, n, k):
    spec = WeightFormat.parse(name)
    q = quantize(random_weight(leading, n, k), spec)
    packed = rows16.pack(q, spec)
    check_types(packed, spec, leading, n, k)
    back = rows16.unpack(packed, spec, n, k)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scale, q.scale)
    assert (back.zero is None) == (q.zero is None)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("k", [1408, 10944])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [6, 3])
def test_widths_of_real_models_fit_every_group(bits, group, k):
    spec = WeightFormat.parse(f"int{bits}-g{group}")
    q = quantize(random_weight((), 17, k), spec)
    assert q.codes.shape[-1] - k < max(group, 32) and q.codes.shape[-1] % group == 0
    np.testing.assert_array_equal(rows16.unpack(rows16.pack(q, spec), spec, 17, k).dequantize(), q.dequantize())


@settings(max_examples=40)
@given(st.sampled_from(FLOAT_FORMATS), LEADING, SIZES, SIZES)
def test_float_pack_then_unpack_is_the_identity(name, leading, n, k):
    spec = WeightFormat.parse(name)
    w = random_weight(leading, n, k).astype(NUMPY_DTYPES[spec.element])
    packed = rows16.pack(w, spec)
    check_types(packed, spec, leading, n, k)
    np.testing.assert_array_equal(rows16.unpack(packed, spec, n, k), w)


def test_int4_byte_holds_codes_four_apart():
    spec = WeightFormat.parse("int4-g32")
    q = quantize(random_weight((), 16, 64), spec)
    data = rows16.pack(q, spec)["data"]
    assert data[0, 3, 5, 2] == q.codes[5, 8 * 3 + 2] | q.codes[5, 8 * 3 + 4 + 2] << 4


@pytest.mark.parametrize("name", [*INTEGER_FORMATS, *CODED_FLOATS])
def test_padding_rows_decode_to_zero(name):
    spec = WeightFormat.parse(name)
    packed = rows16.pack(quantize(random_weight((), 17, 40), spec), spec)
    assert not rows16.unpack(packed, spec, 32, 40).dequantize()[17:].any()
