"""router, router_weights, expert_order, moe_gate_up and moe_down on every level."""

import pytest

from tests.targets.cases.moe import CASES
from tests.targets.op_tests import OpTests

# Formats of whose decoding test_dense_kernels.py has more: here at the size where K is no whole group.
ONCE = ("bfloat16", "int4-g32", "int5-g32")


class TestMoeKernels(OpTests):
    cases = CASES

    def always(self):
        return (name for name in CASES if not name.endswith(tuple(f"-{format}-wide" for format in ONCE)))

    @pytest.fixture
    def backend(self, kernels):
        return kernels
