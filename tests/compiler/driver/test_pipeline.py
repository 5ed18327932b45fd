from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, is_weight, parse_graph
from dsv3c.compiler.core.target import Emission, Entry
from dsv3c.compiler.driver import pipeline
from dsv3c.compiler.errors import (
    BadOptionError,
    Dsv3cError,
    ForeignFileError,
    OutputExistsError,
    TokenizerFormatError,
    UnknownPassError,
    VerifyError,
)
from dsv3c.compiler.formats import rows
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.frontend import tracer
from dsv3c.compiler.options import PAGE_SIZE, CompileOptions
from dsv3c.passes.simplify import Simplify
from tests.checkpoints import tiny_config, write_checkpoint

MODEL_TYPES = ("deepseek_v3", "deepseek_v2", "kimi_k2", "glm4_moe_lite", "youtu")


class FakeTarget:
    """Emits the weights and an empty library; no kernel is built."""

    name = "fake"
    layout = "rows16"
    integer_activations = True
    cache_dtypes = ("bf16", "f32")
    fails = False

    def configured(self, options: Mapping[str, str]) -> FakeTarget:
        return self

    def supports(self, format: WeightFormat, op: str) -> bool:
        return True

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        return 0

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        recipes: dict[str, Value] = {}
        for entry in entries.values():
            memo: dict[Value, bool] = {}
            for value in entry.graph.values():
                for source in value.inputs:
                    if is_weight(source, memo) and not is_weight(value, memo):
                        recipes.setdefault(first_param(source), source)
        levels = ({"name": "any", "requires": [], "file": "kernels/any.so"},)
        return Emission({"arena_bytes": 4096, "buffers": [], "entries": {}}, recipes, levels, self.write_kernels)

    def write_kernels(self, folder: Path, advance: Callable[[int], None]) -> None:
        folder.mkdir()
        (folder / "any.so").write_bytes(b"")
        advance(1)
        if self.fails:
            raise KeyboardInterrupt


def first_param(recipe: Value) -> str:
    params = [value for value in Graph("", (("", recipe),)).values() if value.op == "param"]
    return f"{params[0].attrs['name']}" if params else "constant"


TARGET = FakeTarget()


@pytest.fixture(scope="session")
def checkpoint(bundled_model: Path) -> Checkpoint:
    return Checkpoint.open(bundled_model)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config(num_nextn_predict_layers=1))
    return folder


@pytest.fixture
def fake_target(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTarget]:
    target = FakeTarget()
    monkeypatch.setattr(pipeline.targets, "get", lambda name: target)
    yield target


def traced(checkpoint: Checkpoint, form: str = "absorbed") -> Graph:
    if form == "mtp":
        return tracer.trace_mtp(checkpoint.config, checkpoint.shapes, PAGE_SIZE, 0)
    return tracer.trace(checkpoint.config, checkpoint.shapes, PAGE_SIZE)


def run(checkpoint: Checkpoint, form: str, options: CompileOptions) -> tuple[Graph, dict[str, int]]:
    bounds = pipeline.step_bounds(checkpoint.config, options)
    sequence = pipeline.passes("absorbed" if form == "mtp" else form, options, TARGET, bounds)
    return pipeline.run_passes(traced(checkpoint, form), sequence, options)


# 4 layers, of which 3 have experts; one MTP layer with experts. Per layer: norms before attention and before the MLP,
# of the query latent and of the kv latent; 2 rotations; cache write and attention; choosing and weighing experts.
# 17 norms are 4 * 4 and the final one; the MTP layer has 3 of its own.
FUSIONS = {
    "absorbed": {"fuse-rms-norm": 17, "fuse-rope": 8, "fuse-qkv-a": 4, "fuse-mla": 8, "fuse-router": 6, "fuse-moe": 3,
                 "fuse-swiglu": 1},
    "materialized": {"fuse-rms-norm": 17, "fuse-rope": 8, "fuse-qkv-a": 4, "fuse-mla": 8, "fuse-router": 6,
                     "fuse-moe": 3, "fuse-swiglu": 1},
    "mtp": {"fuse-rms-norm": 7, "fuse-rope": 2, "fuse-qkv-a": 1, "fuse-mla": 2, "fuse-router": 2, "fuse-moe": 1,
            "fuse-swiglu": 0},
}  # fmt: skip


@pytest.mark.parametrize("form", FUSIONS)
def test_each_fusion_fires_as_often_as_the_bundled_model_has_it(form: str, checkpoint: Checkpoint) -> None:
    _, counts = run(checkpoint, form, CompileOptions())
    assert {name: count for name, count in counts.items() if name.startswith("fuse-")} == FUSIONS[form]


def test_the_entries_of_the_bundled_model(checkpoint: Checkpoint) -> None:
    lowered = pipeline.lower(checkpoint.config, checkpoint.shapes, CompileOptions(), TARGET)
    assert lowered.bounds == {"T": 512, "R": 64, "S": 8, "P": 128}
    assert {"decode", "mtp"} <= lowered.entries.keys()
    for name, entry in lowered.entries.items():
        assert entry.graph.name == name
        assert lowered.rewrites[name].keys() == {item.name for item in all_passes(checkpoint)}
        assert not {"matmul", "softmax", "scatter_rows"} & {value.op for value in entry.graph.values()}


def all_passes(checkpoint: Checkpoint) -> list[Any]:
    options = CompileOptions()
    return pipeline.passes("absorbed", options, TARGET, pipeline.step_bounds(checkpoint.config, options))


@pytest.mark.parametrize("form", ["absorbed", "materialized"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nothing_but_kernels_is_left_of_any_model(model_type: str, form: str, tmp_path: Path) -> None:
    """The verifier refuses what is not legal in the last phase."""
    write_checkpoint(tmp_path, tiny_config(model_type))
    source = Checkpoint.open(tmp_path)
    graph, counts = run(source, form, CompileOptions(quant="float32"))
    n_layers = source.config.num_hidden_layers
    assert graph.count(f"mla_{form}") == graph.count("mla_write") == n_layers
    assert counts["fuse-moe"] == sum(source.config.is_moe(layer) for layer in range(n_layers))


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
    assert sorted(path.name for path in tmp_path.iterdir())[-1] == "step-06-fuse-mla.txt"
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


def test_dumps_want_a_folder_apart_from_the_artifact(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ForeignFileError, match="file is there already, is not a folder"):
        run(checkpoint, "absorbed", CompileOptions(stop_after="simplify", dump_to=tmp_path / "file"))
    out = tmp_path / "out"
    for folder in (out, out / "graphs", tmp_path / "other" / ".." / "out"):
        with pytest.raises(BadOptionError, match="outside of the artifact"):
            pipeline.compile_checkpoint(tmp_path / "no-checkpoint", out, CompileOptions(dump_to=folder))


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
        pipeline.run_passes(small_graph(), [Simplify(), Breaks()], CompileOptions(dump_to=tmp_path))
    assert "i8[2] = sin(%x)" in (tmp_path / "small-02-breaks.txt").read_text()


@pytest.mark.parametrize(("level", "lines"), [("0", 0), ("1", 2), ("2", 2), ("3", 12)])
def test_the_debug_ladder_shows_passes_and_then_graphs(
    level: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", level)
    pipeline.run_passes(small_graph(), [Simplify()], CompileOptions())
    err = capsys.readouterr().err.splitlines()
    assert len(err) == lines
    assert [line for line in err if line.startswith("dsv3c: small after simplify: ")] or not lines


def test_materialising_pays_from_the_token_where_its_work_is_less(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    crossing = pipeline.materialize_from(config)
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim

    def absorbed(tokens: int) -> int:
        return tokens * 2 * (2 * rank + rope)

    def materialized(tokens: int) -> int:
        return tokens * 2 * (nope + rope + value) + 2 * rank * (nope + value)

    assert materialized(crossing) <= absorbed(crossing)
    assert materialized(crossing - 1) > absorbed(crossing - 1)


def test_materialising_never_pays_with_a_small_latent(checkpoint: Checkpoint) -> None:
    assert pipeline.materialize_from(dataclasses.replace(checkpoint.config, kv_lora_rank=16)) > 1 << 20


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
        pipeline.check_formats(CompileOptions(embed_quant=name))
    with pytest.raises(BadOptionError):
        pipeline.check_formats(CompileOptions(embed_quant="int8-g32"))


def test_an_existing_output_is_refused_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError):
        pipeline.compile_checkpoint(tmp_path / "no-checkpoint", tmp_path / "out", CompileOptions())


def test_the_default_output_tells_model_format_and_target(tmp_path: Path) -> None:
    options = CompileOptions(quant="int4-g32", target="x86:levels=x86-64-v3")
    assert pipeline.default_output(tmp_path / "some-model", options) == Path("artifacts/some-model-int4-g32-x86")


def test_a_compilation_writes_the_whole_artifact(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    options = CompileOptions(quant="int8", max_tokens=32)
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", options)
    assert report.out == tmp_path / "out"
    files = sorted(path.relative_to(report.out).as_posix() for path in report.out.rglob("*") if path.is_file())
    assert files == ["kernels/any.so", "manifest.json", "plan.json", "weights.safetensors"]
    manifest = json.loads((report.out / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(report.manifest)) | {"files": manifest["files"]}
    assert manifest["files"].keys() == set(files) - {"manifest.json"}
    assert manifest["files"]["weights.safetensors"]["size"] == manifest["memory"]["weights_bytes"]
    assert manifest["format_version"] == 1
    assert manifest["model"]["name"] == manifest["source"]["name"] == "tiny"
    assert manifest["model"]["hidden_size"] == 64
    assert manifest["source"]["files"].keys() == {"config.json", "model.safetensors"}
    assert manifest["target"] == {"name": "x86", "levels": [{"name": "any", "requires": [], "file": "kernels/any.so"}]}
    assert manifest["quantization"] == {"weights": "int8", "head": "int8", "embedding": "bfloat16", "cache": "bfloat16"}
    assert manifest["memory"]["cache_bytes_per_token"] == (3 + 1) * 40 * 2
    assert manifest["passes"]["decode"]["fuse-mla"] == 6
    assert manifest["options"]["max_tokens"] == 32
    parts = manifest["weights"]["parts"]
    assert parts.keys() >= {"embedding", "attention", "dense mlp", "routed experts", "shared experts", "head", "mtp"}
    plan = json.loads((report.out / "plan.json").read_text())
    assert plan["bounds"] == {"T": 32, "R": 64, "S": 8, "P": 32}
    assert (plan["version"], plan["page_size"], plan["latent_dim"], plan["n_caches"]) == (1, 16, 40, 4)
    assert plan["cache_dtype"] == "bfloat16"


def test_a_further_form_is_made_from_the_manifest_and_listed_in_it(
    tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> tuple[str, ...]:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (folder / "form").mkdir()
        (folder / "form" / "model.txt").write_text(manifest["model"]["model_type"], encoding="utf-8")
        return ("a note",)

    emit = fake_target.emit

    def emit_with_form(*arguments: Any) -> Emission:
        return dataclasses.replace(emit(*arguments), extras={"form": write})

    monkeypatch.setattr(fake_target, "emit", emit_with_form)
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(emit=("form",)))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (tmp_path / "out" / "form" / "model.txt").read_text(encoding="utf-8") == "deepseek_v3"
    assert manifest["files"]["form/model.txt"]["size"] == len("deepseek_v3")
    assert "manifest.json" not in manifest["files"]
    assert (report.notes[-1], manifest["notes"][-1]) == ("a note", "a note")


def test_what_an_extra_would_find_wrong_is_found_before_the_work(
    tiny: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(checkpoint: Path) -> None:
        raise TokenizerFormatError(path=checkpoint, reason="because")

    def no_kernels(*arguments: Any) -> None:
        pytest.fail("the work began")

    emit = fake_target.emit

    def emit_with_form(*arguments: Any) -> Emission:
        extras = {"form": lambda folder: None, "other": lambda folder: None}
        return dataclasses.replace(emit(*arguments), extras=extras, checks={"form": refuse}, write_kernels=no_kernels)

    monkeypatch.setattr(fake_target, "emit", emit_with_form)
    with pytest.raises(TokenizerFormatError, match="because"):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(emit=("other", "form")))
    assert not (tmp_path / "out").exists()


def test_notes_are_told_before_the_work(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    told: list[str] = []

    class Telling(pipeline.Silent):
        def tell(self, text: str) -> None:
            told.append(text)

    fake_target.fails = True
    with pytest.raises(KeyboardInterrupt):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Telling())
    assert any("token ids only" in note for note in told)
    fake_target.fails = False
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Telling())
    assert (report.told, report.takes_text) == (len(report.notes), False)


def test_compiling_twice_gives_the_same_bytes(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    for name in "ab":
        pipeline.compile_checkpoint(tiny, tmp_path / name, CompileOptions())
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_an_interrupted_compilation_leaves_nothing(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    fake_target.fails = True
    with pytest.raises(KeyboardInterrupt):
        pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions())
    assert list(tmp_path.iterdir()) == []


def test_stopping_at_a_pass_writes_no_artifact(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    (tmp_path / "out").mkdir()
    options = CompileOptions(stop_after="fuse-mla")
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", options)
    assert (report.out, report.manifest) == (None, {})
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_told_of_each_stage(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    stages: list[tuple[str, int | None]] = []
    done: list[int] = []

    class Told:
        def stage(self, name: str, total: int | None = None) -> None:
            stages.append((name, total))
            done.append(0)

        def advance(self, n: int = 1) -> None:
            done[-1] += n

    pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(), Told())
    names = [name for name, _ in stages]
    assert names == [
        "reading the checkpoint's headers",
        "running the passes",
        "building kernels",
        "writing weights",
        "hashing",
    ]
    assert [count for (_, total), count in zip(stages, done, strict=True) if total is not None] == [
        total for _, total in stages if total is not None
    ]
