import numpy as np
import pytest

from dsv3c.compiler.formats.quant import quantize
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation import choice
from dsv3c.compiler.quantisation.sparsity import NO_ZEROS, Zeros, count_zeros, sparse


def plain(w, threshold, size):
    out = w.copy()
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], size):
            group = w[row, start : start + size].astype(np.float64)
            least = threshold * np.sqrt(np.mean(group * group))
            out[row, start : start + size] = [0 if abs(value) < least else value for value in group]
    return out


@pytest.mark.parametrize("size", [0, 16, 32])
def test_weights_below_the_threshold_of_their_group_become_zero_and_no_others(size):
    w = np.random.default_rng(0).standard_normal((5, 75)).astype(np.float32)
    w[2] = 0
    np.testing.assert_array_equal(sparse(w, 0.5, size), plain(w, 0.5, size or 75))
    stacked = np.stack([w, 2 * w])
    np.testing.assert_array_equal(sparse(stacked, 0.5, size)[1], sparse(2 * w, 0.5, size))


def test_without_a_threshold_nothing_is_touched():
    w = np.ones((2, 4), np.float32)
    assert sparse(w, 0.0, 2) is w


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym"])
def test_zeros_are_counted_without_the_padding(name):
    w = np.ones((3, 70), np.float32)
    w[0, :32] = 0
    w[1, 64:] = 0
    w[2, 5] = 0
    found = count_zeros(quantize(w, WeightFormat.parse(name)))
    assert found == Zeros(210, 32 + 6 + 1, 9, 2)
    assert NO_ZEROS.plus(found).plus(found) == Zeros(420, 78, 18, 4)


def test_what_it_costs_is_part_of_the_error():
    w = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    format = WeightFormat.parse("int4-g32")

    def outcome(threshold):
        return choice.round_weight(w, format, "rtn", [choice.uniform(64)], threshold=threshold)[1][0]

    whole, thinned = outcome(0.0), outcome(0.8)
    assert whole.zeros is None
    assert 0.4 < thinned.zeros.zero_weights / thinned.zeros.weights < 0.7
    assert thinned.error > 5 * whole.error


def test_a_threshold_of_one_leaves_something_of_every_group():
    w = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    assert count_zeros(quantize(sparse(w, 1.0, 32), WeightFormat.parse("int4-g32"))).zero_groups == 0
