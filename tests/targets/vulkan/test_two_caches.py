"""Two caches a layer, of other widths and element types, on a GPU: their places, copies, and what is computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.vulkan import TARGET
from tests.two_caches import BOUNDS, IDS, entries, expected_logits, write_artifact


@pytest.fixture(scope="module")
def folder(shader_compiler: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    planned = TARGET.plan(entries(TARGET), BOUNDS)
    return write_artifact(tmp_path_factory.mktemp("two") / "artifact", "vulkan", planned, TARGET.emit(planned))


def test_steps_and_copied_pages_give_what_numpy_does(folder: Path, vulkan: str) -> None:
    expected = expected_logits()
    with runtime.load(folder, max_batch=3) as model:
        assert np.abs(model.logits(IDS) - expected).max() <= 1e-2 * np.abs(expected).max()  # bfloat16 rows
        plan, report = model.artifact.plan, model.report()
        assert report["cache_bytes"] == sum(-(-96 * cache.slot_bytes // 256) * 256 for cache in plan.caches)
        first = model.new_sequence()
        model.session.run([Request(first, IDS[:14], "none")])
        second = first.fork()
        for sequence in (first, second):
            (found,) = model.session.run([Request(sequence, IDS[14:18], "last")])
            assert np.abs(found[-1] - expected[17]).max() <= 1e-2 * np.abs(expected).max()
