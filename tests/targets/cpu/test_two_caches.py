"""Two caches a layer, of other widths and element types, from the graph to the steps of both runtimes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime
from dsv3c.compiler.core.caches import caches_of
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.cpu.emit import emit
from dsv3c.targets.cpu.native.chat_pieces import ChatPieces
from dsv3c.targets.cpu.native.tables import plan_source
from dsv3c.targets.cpu.relax_module import relax_module
from dsv3c.targets.x86 import TARGET as X86
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.native.binding import Model
from tests.targets.cpu.unbuilt import unbuilt
from tests.two_caches import BOUNDS, IDS, entries, expected_logits, graph, write_artifact

LEVEL = LEVELS[0]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact for x86 without what is compiled."""
    planned = X86.plan(entries(X86), BOUNDS)
    with unbuilt():
        emission = replace(emit(planned, [LEVEL]), extras={})
        return write_artifact(tmp_path_factory.mktemp("two") / "artifact", "x86", planned, emission)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact for x86, with `native`."""
    planned = X86.plan(entries(X86), BOUNDS)
    return write_artifact(tmp_path_factory.mktemp("two") / "artifact", "x86", planned, emit(planned, [LEVEL]))


def test_the_plan_states_both_caches_of_each_layer(described: Path) -> None:
    plan = Artifact.open(described).plan
    assert sorted((cache.name, cache.layer, cache.dtype, cache.width) for cache in plan.caches) == [
        ("cache.0", 0, "bfloat16", 40),
        ("cache.0.index", 0, "float32", 24),
        ("cache.1", 1, "bfloat16", 40),
        ("cache.1.index", 1, "float32", 24),
    ]
    assert plan.slot_bytes == sum(cache.slot_bytes for cache in caches_of([graph()])) == 2 * (40 * 2 + 24 * 4)
    kernels = {name for name, _ in plan.entries["decode"].calls}
    assert {"mla_write_0", "mla_write_1", "mla_absorbed_0", "mla_absorbed_1"} <= kernels
    assert "mla_write_2" not in kernels, "layers share the kernel for caches that are alike"


@pytest.mark.thorough  # test_coded_caches.py has steps with two caches a layer
@pytest.mark.isa(*LEVEL.requires)
def test_the_runtime_computes_what_numpy_does(folder: Path) -> None:
    expected = expected_logits()
    with runtime.load(folder, threads=1) as model:
        found = model.logits(IDS)
        assert model.report()["cache_bytes"] == 32 * model.artifact.plan.slot_bytes
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()  # bfloat16 rows


@pytest.mark.thorough
@pytest.mark.isa(*LEVEL.requires)
def test_a_page_that_is_written_behind_a_fork_is_copied_in_all_caches(folder: Path) -> None:
    """The C runtime too, whose logits are the same bits."""
    with runtime.load(folder, threads=1, max_batch=3) as model:
        whole = model.logits(IDS)
        first = model.new_sequence()
        model.session.run([Request(first, IDS[:14], "none")])
        second = first.fork()
        for sequence in (first, second):
            (found,) = model.session.run([Request(sequence, IDS[14:18], "last")])
            np.testing.assert_array_equal(found[-1], whole[17])
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


def test_the_native_tables_have_a_row_for_each_cache(described: Path) -> None:
    manifest = json.loads((described / "manifest.json").read_text(encoding="utf-8"))
    text = plan_source(described, manifest, ChatPieces("none"))
    names = [cache.name for cache in Artifact.open(described).plan.caches]
    assert f"cache_bytes[] = {{{', '.join('96' if name.endswith('index') else '80' for name in names)}}};" in text
    for number, name in enumerate(names):
        row = "{IN_CACHE, 2, 32, 24, " if name.endswith("index") else "{IN_CACHE, 1, 16, 40, "
        assert any(
            line.strip().startswith(f"{row}{number}}}") and line.endswith(f" {name}") for line in text.split("\n")
        )


def test_tvm_functions_take_caches_of_either_width() -> None:
    planned = X86.plan(entries(X86), BOUNDS)
    names = {recipe: name for name, recipe in planned.recipes.items()}
    module, parameters = relax_module(planned.graphs, BOUNDS, planned.kernels, names, LEVEL)
    caches = [(item.name, item.dtype, item.size) for item in parameters["decode"] if item.kind == "cache"]
    assert caches == [
        ("cache.0", "uint16", 40),
        ("cache.0.index", "float32", 24),
        ("cache.1", "uint16", 40),
        ("cache.1.index", "float32", 24),
    ]
    variables = module["decode"].params
    sizes = {item.name: var.ty.shape[0] for item, var in zip(parameters["decode"], variables, strict=True)}
    assert sizes["cache.0"].same_as(sizes["cache.1"]) and sizes["cache.0.index"].same_as(sizes["cache.1.index"])
    assert not sizes["cache.0"].same_as(sizes["cache.0.index"])
