"""Caches of codes, int8 and fp8 side by side, from the graph to the steps of both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.core.caches import caches_of
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.cpu.emit import emit
from dsv3c.targets.cpu.relax_module import relax_module
from dsv3c.targets.x86 import TARGET as X86
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.native.binding import Model
from tests.two_caches import BOUNDS, IDS, entries, expected_logits, graph, write_artifact

LEVEL = LEVELS[0]
TYPES = ("int8-at32", "fp8-at16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact for x86, with `native`."""
    planned = X86.plan(entries(X86, TYPES), BOUNDS)
    return write_artifact(tmp_path_factory.mktemp("coded") / "artifact", "x86", planned, emit(planned, [LEVEL]))


def test_a_row_of_codes_is_bytes_with_two_scales_in_whole_lines_of_sixteen(folder: Path) -> None:
    plan = Artifact.open(folder).plan
    rows = [(cache.dtype, cache.width, cache.codes) for cache in plan.caches if cache.layer == 0]
    assert rows == [("uint8", 48, "int8"), ("uint8", 32, "fp8")]
    assert plan.slot_bytes == sum(cache.slot_bytes for cache in caches_of([graph(TYPES)])) == 2 * (48 + 32)
    assert plan.costs is not None
    costs = [cost.cache_row_bytes for name, cost in sorted(plan.costs.items()) if name.startswith("mla_absorbed")]
    assert costs == [48, 32], "what a step reads counts the scales"


@pytest.mark.isa(*LEVEL.requires)
def test_the_runtime_computes_what_numpy_does(folder: Path) -> None:
    expected = expected_logits(TYPES)
    with runtime.load(folder, threads=1) as model:
        found = model.logits(IDS)
        assert model.report()["cache_bytes"] == 32 * model.artifact.plan.slot_bytes
    assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()  # a number between two codes


@pytest.mark.isa(*LEVEL.requires)
def test_forks_rollbacks_and_pages_that_are_used_again_take_scales_along(folder: Path) -> None:
    """In both runtimes the logits are the same bits as those of one step."""
    with runtime.load(folder, threads=1, max_batch=3) as model:
        whole = model.logits(IDS)
        first = model.new_sequence()
        model.session.run([Request(first, IDS[:14], "none")])
        second = first.fork()
        for sequence in (first, second):
            (found,) = model.session.run([Request(sequence, IDS[14:18], "last")])
            np.testing.assert_array_equal(found[-1], whole[17])
        second.truncate(9)
        model.session.run([Request(second, IDS[9:12], "none")])
        second.truncate(9)  # three rows are written again, with other scales
        (found,) = model.session.run([Request(second, IDS[9:], "last")])
        np.testing.assert_array_equal(found[-1], whole[-1])
        first.close()
        second.close()
        third = model.new_sequence()
        (found,) = model.session.run([Request(third, IDS[:12][::-1].copy(), "last")])
        third.truncate(0)
        (found,) = model.session.run([Request(third, IDS, "last")])
        np.testing.assert_array_equal(found[-1], whole[-1])
    native = Model(folder, max_batch=3, threads=1)
    np.testing.assert_array_equal(native.logits(IDS), whole)
    one = native.sequence()
    native.run((one, IDS[:14], "none"))
    other = native.fork(one, 14)
    for handle in (one, other):
        (found,) = native.run((handle, IDS[14:18], "last"))
        np.testing.assert_array_equal(found[-1], whole[17])
        native.free(handle)
    native.close()


def test_tvm_functions_take_and_give_bytes() -> None:
    planned = X86.plan(entries(X86, TYPES), BOUNDS)
    names = {recipe: name for name, recipe in planned.recipes.items()}
    _, parameters = relax_module(planned.graphs, BOUNDS, planned.kernels, names, LEVEL)
    caches = [(item.name, item.dtype, item.size) for item in parameters["decode"] if item.kind == "cache"]
    assert caches[:2] == [("cache.0", "uint8", 48), ("cache.0.index", "uint8", 32)]
