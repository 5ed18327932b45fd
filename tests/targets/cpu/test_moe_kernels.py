"""router, router_weights, expert_order, moe_gate_up and moe_down on every level."""

import pytest

from tests.targets.cases.moe import CASES
from tests.targets.op_tests import OpTests


class TestMoeKernels(OpTests):
    cases = CASES

    @pytest.fixture
    def backend(self, kernels):
        return kernels
