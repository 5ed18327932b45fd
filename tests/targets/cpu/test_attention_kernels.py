"""mla_write, mla_absorbed and mla_materialized on every level."""

import numpy as np
import pytest

from dsv3c.targets.calls.attention import MlaAbsorbed
from dsv3c.targets.calls.cache import Paging
from dsv3c.targets.calls.operands import Rows
from dsv3c.targets.cpu.kernels import build
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cases.attention import ROUNDED as CASES
from tests.targets.cases.attention import control, filled_cache, normal, place
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


@pytest.mark.parametrize(("heads", "element"), [(5, "f32"), (16, "bf16"), (17, "int8")])
def test_a_token_gets_the_same_bits_alone_and_beside_others(heads, element, kernels_of_all_levels):
    """Above as many tokens as parts a context has one task, below its chunks have: all at once, or in rounds."""
    contexts = [(1000, 4), (300, 3), (100, 2), (129, 1), (700, 10)]
    positions, sequence, table, slots = place(contexts, 16, 64)
    paging, tokens = Paging(len(contexts), 64, 16, 52, 12, element), len(positions)
    spec = MlaAbsorbed(Rows(tokens), heads, paging, 0.125)
    shared = {"page_table": table, "cache": filled_cache(positions, sequence, table, slots, paging)}
    own = {"positions": positions, "sequence": sequence}
    own |= {"q_latent": normal(tokens, heads, 52), "q_pe": normal(tokens, heads, 12)}

    def attended(kernels, rows):
        found = kernels.run(
            spec, shared | {role: array[rows] for role, array in own.items()} | {"control": control(len(rows))}
        )
        return np.array(found["y"]).reshape(-1, heads, 52)[: len(rows)]

    for kernels in kernels_of_all_levels({"absorbed": (spec,)}):
        alone = np.concatenate([attended(kernels, [row]) for row in range(tokens)])
        for count in range(2, tokens + 1):
            np.testing.assert_array_equal(attended(kernels, np.arange(count)), alone[:count])
