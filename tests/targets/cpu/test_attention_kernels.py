"""mla_write, mla_absorbed and mla_materialized on every level."""

import pytest

from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cases.attention import CASES
from tests.targets.op_tests import OpTests

# Each kind of kernel over each kind of cache; one head, a few and more than a tile, and odd widths, over some cache.
SHORT = {
    CASES[name][0]
    for name in (
        *("absorbed-f32-one-h5", "absorbed-f32-h17", "absorbed-bf16-one-h4", "absorbed-bf16-h1"),
        *("write-f32-False", "write-bf16-view", "materialized-int4-g32-one", "materialized-bfloat16"),
        *("materialized-ragged", "materialized-bf16-h16", "materialized-odd"),
        *("absorbed-int8-odd", "absorbed-int8-h17", "absorbed-fp8", "materialized-over-int8-odd"),
        *("materialized-over-fp8", "write-int8", "write-int8-odd", "write-fp8", "write-fp8-odd"),
    )
}


class TestAttentionKernels(OpTests):
    cases = CASES

    def always(self):
        return (name for name in CASES if CASES[name][0] in SHORT)

    @pytest.fixture
    def backend(self, kernels):
        return kernels


def test_pages_that_a_pass_over_the_cache_would_leave_are_refused():
    spec = MlaAbsorbed(Rows(1), 1, Paging(1, 4, 4, 16, 4, "f32"), 1.0)
    with pytest.raises(AssertionError, match="a page holds 4 slots, which is no multiple of 16"):
        build(spec, LEVELS[0])
