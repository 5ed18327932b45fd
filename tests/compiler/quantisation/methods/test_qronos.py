import numpy as np
import pytest

from dsv3c.compiler.formats.grids import Integers
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods.gptq import gptq
from dsv3c.compiler.quantisation.methods.qronos import qronos
from tests.compiler.quantisation import plain
from tests.compiler.quantisation.problems import correlated

GROUPINGS = [Grouping(0), Grouping(16, "f16"), Grouping(32, "f16", "u8")]


def drifted(seed, n, k, tokens=400, drift=0.2):
    """Weights, the rows of the float model, those of the quantised one, and what is known of them."""
    rng = np.random.default_rng(seed)
    x = correlated(rng, tokens, k)
    moved = (x + drift * x.std() * rng.standard_normal(x.shape)).astype(np.float32)
    inputs = MatrixInputs(tokens, moved.T @ moved / np.float32(tokens), moved.T @ x / np.float32(tokens))
    return rng.standard_normal((n, k)).astype(np.float32), x, moved, inputs


@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.parametrize("bits", [2, 4])
def test_codes_are_those_of_the_plain_algorithm_with_the_same_scales(bits, grouping):
    w, _, _, inputs = drifted(bits, 4, 36)
    grid = Integers(bits)
    found = qronos(w, inputs, grid, grouping, sweeps=0)
    zero = np.full(found.scale.shape, grid.zero) if found.zero is None else found.zero.astype(int)
    scale, size = found.scale.astype(np.float64), grouping.size or 36
    expected = plain.qronos(w, inputs.gram, inputs.cross, 0.01, grid, scale, zero, size)
    np.testing.assert_array_equal(found.codes[:, :36], expected)


@pytest.mark.parametrize("cross", [False, True])
def test_it_is_gptq_where_the_rows_are_the_same(cross):
    w, x, _, _ = drifted(3, 4, 40)
    gram = x.T @ x / np.float32(len(x))
    inputs = MatrixInputs(len(x), gram, gram.copy() if cross else None)
    grid, grouping = Integers(3), Grouping(16, "f16")
    np.testing.assert_array_equal(qronos(w, inputs, grid, grouping).codes, gptq(w, inputs, grid, grouping).codes)


def test_outputs_come_nearer_to_those_of_the_float_model_than_with_gptq():
    grid, grouping = Integers(3), Grouping(16, "f16")
    for seed in range(3):
        w, x, moved, inputs = drifted(seed, 16, 64)
        errors = [
            np.square(x @ w.T - moved @ plain.decoded(method(w, inputs, grid, grouping), grid, 64).T).sum()
            for method in (qronos, gptq)
        ]
        assert errors[0] < 0.9 * errors[1]
