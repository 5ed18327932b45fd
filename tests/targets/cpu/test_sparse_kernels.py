"""index_write, index_topk and mla_sparse on every level."""

import pytest

from tests.targets.cases.sparse import CASES
from tests.targets.op_tests import OpTests


class TestSparseKernels(OpTests):
    cases = CASES

    @pytest.fixture
    def backend(self, kernels):
        return kernels
