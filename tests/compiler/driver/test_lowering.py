from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.members import MEMBERS, SAME_AS, WRAPPERS
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, parse_graph
from dsv3c.compiler.driver import checks, lowering, pipeline
from dsv3c.compiler.errors import (
    BadOptionError,
    Dsv3cError,
    ForeignFileError,
    UnknownPassError,
    VerifyError,
)
from dsv3c.compiler.formats import rows
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.passes.simplify import Simplify
from dsv3c.runtime.artifact.plan import NEVER
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.driver.fake_target import TARGET

MODEL_TYPES = (*MEMBERS, *SAME_AS, *WRAPPERS)


@pytest.fixture(scope="session")
def checkpoint(bundled_model: Path) -> Checkpoint:
    return Checkpoint.open(bundled_model)


def traced(checkpoint: Checkpoint, form: str = "absorbed") -> Graph:
    if form == "mtp":
        return tracer.trace_mtp(checkpoint.config, checkpoint.shapes, PAGE_SIZE, 0)
    return tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)


def run(checkpoint: Checkpoint, form: str, options: CompileOptions) -> tuple[Graph, dict[str, int]]:
    bounds = lowering.step_bounds(checkpoint.config, options)
    sequence = lowering.passes("absorbed" if form == "mtp" else form, options, TARGET, bounds)
    return lowering.run_passes(traced(checkpoint, form), sequence, options)


# 4 layers, of which 3 have experts; one MTP layer with experts. Per layer: norms before attention and before the MLP,
# of the query latent and of the kv latent; 2 rotations; cache write and attention; choosing and weighing experts.
# 17 norms are 4 * 4 and the final one; the MTP layer has 3 of its own.
FUSIONS = {
    "absorbed": {"fuse-rms-norm": 17, "fuse-rope": 8, "fuse-qkv-a": 4, "fuse-index": 0, "fuse-mla": 8,
                 "fuse-router": 6, "fuse-moe": 3, "fuse-swiglu": 1},
    "materialized": {"fuse-rms-norm": 17, "fuse-rope": 8, "fuse-qkv-a": 4, "fuse-index": 0, "fuse-mla": 8,
                     "fuse-router": 6, "fuse-moe": 3, "fuse-swiglu": 1},
    "mtp": {"fuse-rms-norm": 7, "fuse-rope": 2, "fuse-qkv-a": 1, "fuse-index": 0, "fuse-mla": 2, "fuse-router": 2,
            "fuse-moe": 1, "fuse-swiglu": 0},
}  # fmt: skip


def test_every_sequence_of_a_step_can_have_a_row_of_logits(checkpoint: Checkpoint) -> None:
    few, many = (CompileOptions(max_rows=16, max_sequences=count) for count in (8, 40))
    assert [lowering.step_bounds(checkpoint.config, each)["R"] for each in (few, many)] == [16, 40]


@pytest.mark.parametrize("form", FUSIONS)
def test_each_fusion_fires_as_often_as_the_bundled_model_has_it(form: str, checkpoint: Checkpoint) -> None:
    _, counts = run(checkpoint, form, CompileOptions())
    assert {name: count for name, count in counts.items() if name.startswith("fuse-")} == FUSIONS[form]


def test_the_entries_of_the_bundled_model(checkpoint: Checkpoint) -> None:
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, CompileOptions(), TARGET)
    assert lowered.bounds == {"T": 512, "R": 64, "S": 8, "P": 128}
    assert {"decode", "mtp"} <= lowered.entries.keys()
    for name, entry in lowered.entries.items():
        assert entry.graph.name == name
        assert lowered.rewrites[name].keys() == {item.name for item in all_passes(checkpoint)}
        assert not {"matmul", "softmax", "scatter_rows"} & {value.op for value in entry.graph.values()}


def all_passes(checkpoint: Checkpoint) -> list[Any]:
    options = CompileOptions()
    return lowering.passes("absorbed", options, TARGET, lowering.step_bounds(checkpoint.config, options))


@pytest.mark.parametrize("form", ["absorbed", "materialized"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nothing_but_kernels_is_left_of_any_model(model_type: str, form: str, tmp_path: Path) -> None:
    """The verifier refuses what is not legal in the last phase."""
    write_checkpoint(tmp_path, tiny_config(model_type))
    source = Checkpoint.open(tmp_path)
    graph, counts = run(source, form, CompileOptions(quant="float32"))
    n_layers = source.config.num_hidden_layers
    n_indexers = sum(source.config.indexer_type(layer) == "full" for layer in range(n_layers))
    assert graph.count("mla_sparse" if n_indexers else f"mla_{form}") == graph.count("mla_write") == n_layers
    assert graph.count("index_write") == graph.count("index_topk") == n_indexers
    n_sparse, n_dense = (
        sum(has(layer) for layer in range(n_layers)) for has in (source.config.is_moe, source.config.has_mlp)
    )
    assert {name: count for name, count in counts.items() if name.startswith("fuse-")} == {
        "fuse-rms-norm": 4 * n_layers + 1 + (n_sparse if source.config.post_mlp_norm else 0) + n_indexers,
        "fuse-rope": 2 * n_layers + 4 * n_indexers,  # the query and the key, of which it is a part
        "fuse-qkv-a": n_layers,
        "fuse-index": 2 * n_indexers,
        "fuse-mla": 2 * n_layers,
        "fuse-router": 2 * n_sparse,
        "fuse-moe": n_sparse * (2 if source.config.zero_expert_num else 1),
        "fuse-swiglu": n_dense,
    }


@pytest.mark.parametrize("model_type", ["deepseek_v32", "glm_moe_dsa"])
def test_short_contexts_have_entries_that_choose_nothing_and_write_keys(model_type: str, tmp_path: Path) -> None:
    """Also layers that take the choice of another. Nothing is rebuilt where fewer are chosen than that pays for."""
    for topk, names in ((40, {"decode", "short_decode", "short_prefill"}), (5, {"decode", "short_decode"})):
        write_checkpoint(tmp_path, tiny_config(model_type, index_topk=topk, max_position_embeddings=128))
        source = Checkpoint.open(tmp_path)
        assert lowering.materialize_from(source.config) in range(6, 40)
        lowered = lowering.lower(source.config, source.shapes, CompileOptions(quant="float32"), TARGET)
        assert lowered.entries.keys() - {"mtp"} == names
        layers = source.config.num_hidden_layers
        writes = lowered.graphs["decode"].count("index_write")
        for name, form in (("short_decode", "absorbed"), ("short_prefill", "materialized")):
            if name in names:
                graph = lowered.graphs[name]
                assert [graph.count(op) for op in ("index_topk", "mla_sparse", f"mla_{form}")] == [0, 0, layers]
                assert graph.count("index_write") == writes == lowered.rewrites[name]["choose-all"] > 0
                assert lowered.entries[name].max_context == topk
        assert lowered.entries["decode"].max_context == NEVER


@pytest.mark.parametrize("quant", ["float32", "bfloat16", "int8-g64", "int4-g32-asym"])
def test_the_planned_graph_prints_and_parses(quant: str, checkpoint: Checkpoint) -> None:
    graph, _ = run(checkpoint, "absorbed", CompileOptions(quant=quant))
    assert parse_graph(str(graph)) == graph


def test_dumps_are_numbered_in_the_order_of_the_passes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph, _ = run(checkpoint, "absorbed", CompileOptions(dump_to=tmp_path / "graphs"))
    names = sorted(path.name for path in (tmp_path / "graphs").iterdir())
    assert names == ["step-00-trace.txt"] + [
        f"step-{number:02d}-{item.name}.txt" for number, item in enumerate(all_passes(checkpoint), start=1)
    ]
    last = (tmp_path / "graphs" / names[-1]).read_text()
    assert re.match(r"# step after plan-memory: \d+\.\d ms, \d+ rewrites\n", last)
    assert parse_graph(last) == graph
    assert parse_graph((tmp_path / "graphs" / names[0]).read_text()) == traced(checkpoint)


def test_stopping_leaves_out_the_passes_behind(checkpoint: Checkpoint, tmp_path: Path) -> None:
    graph, counts = run(checkpoint, "absorbed", CompileOptions(stop_after="fuse-mla", dump_to=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "step-07-fuse-mla.txt"
    assert graph.count("mla_absorbed") == 4
    assert graph.count("router") == 0
    assert counts["fuse-moe"] == 0


def test_a_pass_that_runs_twice_is_stopped_at_after_its_last_run(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run(checkpoint, "absorbed", CompileOptions(stop_after="simplify", dump_to=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "step-05-simplify.txt"


def test_a_dump_overwrites_earlier_dumps_and_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = CompileOptions(stop_after="simplify", dump_to=tmp_path)
    run(checkpoint, "absorbed", options)
    run(checkpoint, "absorbed", options)
    path = next(tmp_path.glob("*-01-simplify.txt"))
    path.write_text("my notes")
    with pytest.raises(ForeignFileError, match="is not the dump of a graph"):
        run(checkpoint, "absorbed", options)
    assert path.read_text() == "my notes"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("nothing")])
def test_what_is_no_file_is_no_dump_and_is_not_waited_for(
    checkpoint: Checkpoint, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "step-00-trace.txt")
    with pytest.raises(ForeignFileError, match="is not the dump of a graph"):
        run(checkpoint, "absorbed", CompileOptions(stop_after="simplify", dump_to=tmp_path))


def test_dumps_and_kept_kernels_want_a_folder_apart_from_the_artifact(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ForeignFileError, match="file is there already, is not a folder"):
        run(checkpoint, "absorbed", CompileOptions(stop_after="simplify", dump_to=tmp_path / "file"))
    out = tmp_path / "out"
    for folder in (out, out / "graphs", tmp_path / "other" / ".." / "out"):
        with pytest.raises(BadOptionError, match="outside of the artifact"):
            pipeline.compile_checkpoint(tmp_path / "no-checkpoint", out, CompileOptions(dump_to=folder))
        with pytest.raises(BadOptionError, match=r"cache_dir is .*outside of the artifact"):
            pipeline.compile_checkpoint(tmp_path / "no-checkpoint", out, CompileOptions(cache_dir=folder))
    assert not out.exists()


def test_an_unknown_pass_is_answered_with_the_known(checkpoint: Checkpoint) -> None:
    with pytest.raises(
        UnknownPassError, match="no pass is called 'fuse-all'; the passes are simplify, fuse-rms-norm, "
    ):
        run(checkpoint, "absorbed", CompileOptions(stop_after="fuse-all"))


class Breaks:
    """A pass that gives its result a wrong type."""

    name: ClassVar[str] = "breaks"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        (_, value), *_ = graph.results
        wrong = Value(value.op, value.inputs, value.attrs, dataclasses.replace(value.type, dtype="i8"))
        return Graph(graph.name, (("r", wrong),)), 1


def small_graph() -> Graph:
    x = ops.leaf("input", "x", ops.const((1.0, 2.0)).type)
    return Graph("small", (("r", ops.apply("sin", (x,), {})),))


def test_a_pass_that_breaks_the_graph_is_named_and_its_result_dumped(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="the graph is wrong after breaks: the type should be"):
        lowering.run_passes(small_graph(), [Simplify(), Breaks()], CompileOptions(dump_to=tmp_path))
    assert "i8[2] = sin(%x)" in (tmp_path / "small-02-breaks.txt").read_text()


@pytest.mark.parametrize(("level", "lines"), [("0", 0), ("1", 2), ("2", 2), ("3", 12)])
def test_the_debug_ladder_shows_passes_and_then_graphs(
    level: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", level)
    lowering.run_passes(small_graph(), [Simplify()], CompileOptions())
    err = capsys.readouterr().err.splitlines()
    assert len(err) == lines
    assert [line for line in err if line.startswith("dsv3c: small after simplify: ")] or not lines


def test_materialising_pays_from_the_token_where_its_work_is_less(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    crossing = lowering.materialize_from(config)
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim

    def absorbed(tokens: int) -> int:
        return tokens * 2 * (2 * rank + rope)

    def materialized(tokens: int) -> int:
        return tokens * 2 * (nope + rope + value) + 2 * rank * (nope + value)

    assert materialized(crossing) <= absorbed(crossing)
    assert materialized(crossing - 1) > absorbed(crossing - 1)


def test_materialising_never_pays_with_a_small_latent(checkpoint: Checkpoint) -> None:
    assert lowering.materialize_from(dataclasses.replace(checkpoint.config, kv_lora_rank=16)) > 1 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant": "int3"}, "int3"),
        ({"head_quant": "q4"}, "q4"),
        ({"embed_quant": "int4-g32"}, "embed_quant is 'int4-g32'; expected one of float32, float16, bfloat16, int8"),
    ],
)
def test_formats_are_checked_before_the_work(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(Dsv3cError, match=message):
        pipeline.compile_checkpoint(tmp_path / "no-checkpoint", None, CompileOptions(**options))  # type: ignore[arg-type]


def test_an_embedding_may_have_what_a_row_decodes_alone_from() -> None:
    for name in rows.format_names():
        checks.check_formats(CompileOptions(embed_quant=name))
    with pytest.raises(BadOptionError):
        checks.check_formats(CompileOptions(embed_quant="int8-g32"))
