"""mla_write, mla_absorbed and mla_materialized on every level."""

import pytest

from tests.targets.cases.attention import CASES
from tests.targets.op_tests import OpTests

# Each kind of kernel over each kind of cache, with one head, a few and more than a tile.
SHORT = {
    CASES[name][0]
    for name in (
        *("absorbed-f32-one-h5", "absorbed-f32-h17", "absorbed-bf16-one-h4", "absorbed-bf16-h1", "absorbed-bf16-h16"),
        *("write-f32-False", "write-bf16-view", "materialized-int4-g32-one", "materialized-bfloat16"),
        *("materialized-ragged", "materialized-bf16-h16", "materialized-odd"),
    )
}


class TestAttentionKernels(OpTests):
    cases = CASES

    def always(self):
        return (name for name in CASES if CASES[name][0] in SHORT)

    @pytest.fixture
    def backend(self, kernels):
        return kernels
