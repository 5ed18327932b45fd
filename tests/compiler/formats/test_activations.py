import numpy as np
import pytest

from dsv3c.compiler.formats.activations import quantize_rows


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
