"""A model of two layers with two caches each: latent rows of 40 columns, and beside them rows of 24; by default these
are bf16[40] and f32[24].

Attention goes over both, so that what it computes depends on every row of each cache. `write_artifact` makes an
artifact of it for a target, `expected_logits` says in numpy what it gives.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c import runtime
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import caches_of
from dsv3c.compiler.core.ir import Graph, parse_graph
from dsv3c.compiler.core.target import Emission, EntryGraph, Planned, Target
from dsv3c.compiler.core.verifier import verify
from dsv3c.compiler.driver import artifact, weights
from dsv3c.passes.plan_memory import PlanMemory
from dsv3c.runtime.artifact.artifact import FORMAT_VERSION, MANIFEST
from dsv3c.runtime.artifact.plan import Bounds, Plan

Floats = NDArray[np.float32]
Types = tuple[str, str]  # of the elements of the caches of a layer
TYPES = ("bf16", "f32")
PAGE_SIZE, VOCAB = 16, 48
BOUNDS = {"T": 8, "R": 4, "S": 3, "P": 2}
IDS = np.random.default_rng(1).integers(0, VOCAB, 21).astype(np.int32)
PAGING = "%positions, %sequence, %page_table"
WRITE = '{"eps": 1e-05, "interleave": true, "page_size": 16}'
READ = '{"page_size": 16, "scale": 0.25}'


def layer(i: int, types: Types) -> str:
    """Attention over latent rows of 40 columns, and over the layer's second cache, rows of 24, side by side."""
    latent, index = types
    return f"""
  %norm.{i}: f32[32] = param()
  %index_norm.{i}: f32[16] = param()
  %cache.{i}: {latent}[N, 40] = input()
  %cache.{i}.index: {index}[N, 24] = input()
  %row{i}: f32[T, 40] = slice(%x{i}) {{"axis": -1, "start": 0, "stop": 40}}
  %index_row{i}: f32[T, 24] = slice(%x{i}) {{"axis": -1, "start": 24, "stop": 48}}
  %latent{i}: f32[T, 32] = slice(%x{i}) {{"axis": -1, "start": 0, "stop": 32}}
  %index_part{i}: f32[T, 16] = slice(%x{i}) {{"axis": -1, "start": 16, "stop": 32}}
  %written{i}: {latent}[N, 40] = mla_write(%cache.{i}, %row{i}, %norm.{i}, %angles, {PAGING}) {WRITE}
  %indexed{i}: {index}[N, 24] = mla_write(%cache.{i}.index, %index_row{i}, %index_norm.{i}, %angles, {PAGING}) {WRITE}
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


def graph(types: Types = TYPES) -> Graph:
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
    return parse_graph("\n".join([head, layer(0, types), layer(1, types), tail]))


def entries(target: Target, types: Types = TYPES) -> dict[str, EntryGraph]:
    """The planned graph as the one entry."""
    verify(graph(types), "kernel", "the test's own text")
    planned, _ = PlanMemory(BOUNDS, partial(target.scratch_bytes, bounds=BOUNDS)).run(graph(types))
    return {"decode": EntryGraph(planned, 1)}


def params() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    shapes = {str(value.attrs["name"]): value.shape for value in graph().values() if value.op == "param"}
    drawn = {name: random.standard_normal([int(dim) for dim in shape]).astype("f4") for name, shape in shapes.items()}
    return drawn | {"frequencies": np.array([1, 0.5, 0.25, 0.125], np.float32)}


def write_artifact(out: Path, target: str, planned: Planned, emission: Emission) -> Path:
    """An artifact of what was emitted, with `native` where the target has that."""
    out.mkdir()
    plan = Plan(
        Bounds(**BOUNDS),
        PAGE_SIZE,
        planned.arena_bytes,
        planned.buffers,
        planned.entries,
        planned.costs,
        emission.dispatches,
    )
    artifact.write_json(out / "plan.json", plan.to_json())
    emission.write_kernels_for(out / "plan.json", out / "kernels", lambda _: None)
    given = params()
    file = weights.lay_out(planned.recipes)
    weights.write(file, out / "weights.safetensors", lambda name, _: given[name], lambda _: None)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dsv3c_version": runtime.__version__,
        "model": {"vocab_size": VOCAB, "eos_token_ids": []},
        "target": {"name": target, "levels": [dict(level) for level in emission.levels], **emission.facts},
    }
    artifact.write_json(out / MANIFEST, manifest)
    if "native" in emission.extras:
        emission.extras["native"](out)
    artifact.write_json(out / MANIFEST, manifest | {"files": artifact.file_table(out)})
    return out


def expected_logits(types: Types = TYPES) -> Floats:
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
    for cache in caches_of([graph(types)]):
        given[cache.name] = cache.zeros(slots)
    found: Floats = ops.evaluate_graph(graph(types), given | params(), params().__getitem__)["logits"]
    return found
