"""Two caches a layer, of other widths and element types, from the graph to the steps of both runtimes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c import runtime
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import caches_of
from dsv3c.compiler.core.ir import Graph, parse_graph
from dsv3c.compiler.core.target import Entry
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.driver import artifact, weights
from dsv3c.compiler.formats.quant import NUMPY_DTYPES
from dsv3c.passes.plan_memory import PlanMemory
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine.session import Request
from dsv3c.targets.calls.plan import Plan
from dsv3c.targets.cpu.emit import CALLS, emit, scratch_bytes
from dsv3c.targets.cpu.relax_module import relax_module
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cpu.native.binding import Model

Floats = NDArray[np.float32]
LEVEL = LEVELS[0]
PAGE_SIZE, VOCAB = 4, 48
BOUNDS = {"T": 8, "R": 4, "S": 3, "P": 8}
IDS = np.random.default_rng(1).integers(0, VOCAB, 21).astype(np.int32)
PAGING = "%positions, %sequence, %page_table"
WRITE = '{"eps": 1e-05, "interleave": true, "page_size": 4}'
READ = '{"page_size": 4, "scale": 0.25}'


def layer(i: int) -> str:
    """Attention over latent rows of bf16[40], and over the layer's second cache, rows of f32[24], side by side."""
    return f"""
  %norm.{i}: f32[32] = param()
  %index_norm.{i}: f32[16] = param()
  %cache.{i}: bf16[N, 40] = input()
  %cache.{i}.index: f32[N, 24] = input()
  %row{i}: f32[T, 40] = slice(%x{i}) {{"axis": -1, "start": 0, "stop": 40}}
  %index_row{i}: f32[T, 24] = slice(%x{i}) {{"axis": -1, "start": 24, "stop": 48}}
  %latent{i}: f32[T, 32] = slice(%x{i}) {{"axis": -1, "start": 0, "stop": 32}}
  %index_part{i}: f32[T, 16] = slice(%x{i}) {{"axis": -1, "start": 16, "stop": 32}}
  %written{i}: bf16[N, 40] = mla_write(%cache.{i}, %row{i}, %norm.{i}, %angles, {PAGING}) {WRITE}
  %indexed{i}: f32[N, 24] = mla_write(%cache.{i}.index, %index_row{i}, %index_norm.{i}, %angles, {PAGING}) {WRITE}
  %normed{i}: f32[T, 32] = rms_norm(%latent{i}, %norm.{i}) {{"eps": 1e-05}}
  %index_normed{i}: f32[T, 16] = rms_norm(%index_part{i}, %index_norm.{i}) {{"eps": 1e-05}}
  %q{i}: f32[T, 1, 32] = reshape(%normed{i}) {{"shape": ["T", 1, 32]}}
  %q_index{i}: f32[T, 1, 16] = reshape(%index_normed{i}) {{"shape": ["T", 1, 16]}}
  %heads{i}: f32[T, 1, 48] = reshape(%x{i}) {{"shape": ["T", 1, 48]}}
  %q_pe{i}: f32[T, 1, 8] = slice(%heads{i}) {{"axis": -1, "start": 40, "stop": 48}}
  %turned{i}: f32[T, 1, 8] = rope(%q_pe{i}, %angles) {{"interleave": true}}
  %attended{i}: f32[T, 1, 32] = mla_absorbed(%q{i}, %turned{i}, %written{i}, {PAGING}) {READ}
  %weighed{i}: f32[T, 1, 16] = mla_absorbed(%q_index{i}, %turned{i}, %indexed{i}, {PAGING}) {READ}
  %flat{i}: f32[T, 32] = reshape(%attended{i}) {{"shape": ["T", 32]}}
  %flat_index{i}: f32[T, 16] = reshape(%weighed{i}) {{"shape": ["T", 16]}}
  %both{i}: f32[T, 48] = concat(%flat{i}, %flat_index{i}) {{"axis": -1}}
  %x{i + 1}: f32[T, 48] = add(%x{i}, %both{i})"""


def graph() -> Graph:
    inputs = "".join(f"  %{name}: i32[T] = input()\n" for name in ("tokens", "positions", "sequence"))
    head = f"""graph decode {{
{inputs}  %page_table: i32[S, P] = input()
  %rows: i32[R] = input()
  %embedding: f32[{VOCAB}, 48] = param()
  %frequencies: f32[4] = param()
  %angles: f32[T, 8] = rope_table(%positions, %frequencies) {{"scale": 1.0}}
  %x0: f32[T, 48] = take(%embedding, %tokens)"""
    caches = ", ".join(f"cache.{i}=%written{i}, cache.{i}.index=%indexed{i}" for i in range(2))
    tail = f"  %logits: f32[R, {VOCAB}] = take(%x2, %rows)\n  return logits=%logits, {caches}\n}}"
    return parse_graph("\n".join([head, layer(0), layer(1), tail]))


@pytest.fixture(scope="module")
def planned() -> Graph:
    verify(graph(), "kernel", "the test's own text")
    found, _ = PlanMemory(BOUNDS, partial(scratch_bytes, bounds=BOUNDS)).run(graph())
    return found


@pytest.fixture(scope="module")
def params() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    shapes = {str(value.attrs["name"]): value.shape for value in graph().values() if value.op == "param"}
    return {name: random.standard_normal([int(dim) for dim in shape]).astype("f4") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(planned: Graph, params: dict[str, Floats], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the graph, with `native`."""
    out = tmp_path_factory.mktemp("two") / "artifact"
    out.mkdir()
    emission = emit({"decode": Entry(planned, 1)}, BOUNDS, [LEVEL])
    plan = {"version": 2, "bounds": BOUNDS, "page_size": PAGE_SIZE, **emission.plan}
    artifact.write_json(out / "plan.json", plan)
    emission.write_kernels_for(out / "plan.json", out / "kernels", lambda _: None)
    weights.write(
        weights.lay_out(emission.recipes), out / "weights.safetensors", lambda name, _: params[name], lambda _: None
    )
    manifest: dict[str, Any] = {
        "format_version": artifact.FORMAT_VERSION,
        "dsv3c_version": runtime.__version__,
        "model": {"vocab_size": VOCAB, "eos_token_ids": []},
        "target": {"name": "x86", "levels": [dict(level) for level in emission.levels]},
    }
    artifact.write_json(out / artifact.MANIFEST, manifest)
    emission.extras["native"](out)
    artifact.write_json(out / artifact.MANIFEST, manifest | {"files": artifact.file_table(out)})
    return out


@pytest.fixture(scope="module")
def expected(params: dict[str, Floats]) -> Floats:
    """Logits of all of IDS, evaluated in numpy as one step."""
    count = IDS.size
    given: dict[str, Any] = {
        "tokens": IDS,
        "positions": np.arange(count, dtype=np.int32),
        "sequence": np.zeros(count, np.int32),
        "page_table": np.arange(BOUNDS["P"], dtype=np.int32)[None],
        "rows": np.arange(count, dtype=np.int32),
    }
    slots = BOUNDS["P"] * PAGE_SIZE
    for cache in caches_of([graph()]):
        given[cache.name] = np.zeros((slots, cache.width), NUMPY_DTYPES[cache.type.dtype])
    found: Floats = ops.evaluate_graph(graph(), given | params, params.__getitem__)["logits"]
    return found


def test_the_plan_states_both_caches_of_each_layer(folder: Path) -> None:
    plan = Artifact.open(folder).plan
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


@pytest.mark.isa(*LEVEL.requires)
def test_the_runtime_computes_what_numpy_does(folder: Path, expected: Floats) -> None:
    with runtime.load(folder, threads=1) as model:
        found = model.logits(IDS)
        assert model.report()["cache_bytes"] == 32 * model.artifact.plan.slot_bytes
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()  # bfloat16 rows


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


def test_the_native_tables_have_a_row_for_each_cache(folder: Path) -> None:
    text = (folder / "native/src/plan.c").read_text(encoding="utf-8")
    names = [cache.name for cache in Artifact.open(folder).plan.caches]
    assert f"cache_bytes[] = {{{', '.join('96' if name.endswith('index') else '80' for name in names)}}};" in text
    for number, name in enumerate(names):
        row = "{IN_CACHE, 2, 32, 24, " if name.endswith("index") else "{IN_CACHE, 1, 16, 40, "
        assert any(
            line.strip().startswith(f"{row}{number}}}") and line.endswith(f" {name}") for line in text.split("\n")
        )


def test_tvm_functions_take_caches_of_either_width(planned: Graph) -> None:
    entries = {"decode": Entry(planned, 1)}
    emission = emit(entries, BOUNDS, [LEVEL])
    plan = Plan(BOUNDS, CALLS)
    plan.content(entries)
    names = {recipe: name for name, recipe in emission.recipes.items()}
    module, parameters = relax_module(entries, BOUNDS, plan.kernels, names, LEVEL)
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
