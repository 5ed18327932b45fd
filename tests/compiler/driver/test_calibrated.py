"""Weights that are rounded by what they meet: what the file has, what is read for it, what is said of it."""

from __future__ import annotations

import json
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.ops.weight import Packed, decoded, format_of
from dsv3c.compiler.core.pieces import part
from dsv3c.compiler.driver import calibrated, calibration_cost, checks, lowering, pipeline, weights
from dsv3c.compiler.driver.rounding_log import RoundingLog
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.errors import BadOptionError, NoTokenizerError
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.quantisation import choice, input_scales
from dsv3c.compiler.quantisation.calibration import forward, store
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.inputs import MatrixInputs
from dsv3c.compiler.quantisation.methods import METHODS
from dsv3c.runtime.progress import Silent
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer
from tests.compiler.driver.counting import Counting
from tests.compiler.driver.fake_target import FakeTarget

LENGTHS = (64, 40, 9)


class Call(NamedTuple):
    """What a weight was rounded with, and what came of it."""

    w: Any
    format: Any
    inputs: Sequence[MatrixInputs]
    few: str
    codes: QTensor


class Written(NamedTuple):
    file: weights.WeightFile
    data: bytes
    calls: list[Call]
    log: RoundingLog
    read: list[tuple[str, int | None]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, tiny_config(num_hidden_layers=2, num_nextn_predict_layers=1))
    write_tokenizer(folder, 96)
    return folder


@pytest.fixture(scope="module")
def write(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """Writes the weights file for a target, by a method, without building kernels; each once."""
    rng = np.random.default_rng(5)
    text = CalibrationText(tuple(rng.integers(0, 96, n).astype(np.int32) for n in LENGTHS), "a text", "")

    @cache
    def write(method: str | None, quant: str = "int4-g32", target: str = "x86", source: Path = checkpoint) -> Written:
        folder = tmp_path_factory.mktemp("written")
        with pytest.MonkeyPatch.context() as patch:
            return write_weights(source, folder, text, method, quant, target, patch)

    return write


def write_weights(
    source: Path,
    folder: Path,
    text: CalibrationText,
    method: str | None,
    quant: str,
    target: str,
    patch: pytest.MonkeyPatch,
    most_calls: int | None = None,
) -> Written:
    """most_calls: of those that are kept, with their weights."""
    opened, chosen, calls, read = Checkpoint.open(source), targets.get(target), deque[Call]((), most_calls), list[Any]()
    lowered = lowering.lower(opened.config, opened.shapes, CompileOptions(quant=quant), chosen)
    file = weights.lay_out(chosen.plan(lowered.entries, lowered.bounds).recipes)
    round_weight = choice.round_weight

    def watched(w: Any, format: Any, method: str, inputs: Any, few: str = "", *rest: Any) -> Any:
        codes, outcomes = round_weight(w, format, method, inputs, few, *rest)
        calls.append(Call(w, format, inputs, few, codes))
        return codes, outcomes

    def given(name: str, expert: int | None) -> Any:
        read.append((name, expert))
        if quant == "fp8":
            return opened.coded(name, expert)
        return opened.read(name) if expert is None else opened.part(name, expert)

    patch.setattr(choice, "round_weight", watched)
    patch.setattr(input_scales, "ALPHAS", (0.0, 0.1, 0.3))  # few, for time, for time
    log = RoundingLog("")
    with weights.writing(file, folder / "weights", given, lambda n: None) as writer:
        if method is not None:
            planned = calibrated.plan(lowered.graphs)
            log = calibrated.write(writer, planned, text, method, opened.config, folder, Silent())
        writer.write_rest()
    return Written(file, (folder / "weights").read_bytes(), list(calls), log, read)


def stored(written: Written, recipe: str, index: int = 0, count: int = 1) -> list[bytes]:
    """The bytes of a piece of a recipe."""
    found = []
    for tensor in written.file.tensors[recipe]:
        size = tensor.component.nbytes // count
        start = tensor.offset + index * size
        found.append(written.data[start : start + size])
    return found


def codes_of(call: Call, method: str) -> QTensor:
    """The codes of a matrix [N, K] by the method itself."""
    made = METHODS[method](call.w, call.inputs[0], call.format.grid, call.format.grouping)
    return QTensor(made.codes, made.scale, made.zero, call.format, call.w.shape[-1])


def packed(recipe: Value, codes: QTensor) -> list[bytes]:
    (quantized,) = weights.quantized_in(recipe)
    (result,) = ops.evaluate([recipe], lambda leaf: None, {quantized: codes})
    return [np.ascontiguousarray(array).tobytes() for array in result.components.values()]


@pytest.mark.parametrize("method", ["search", "gptq", "qronos"])
def test_the_file_has_the_codes_that_the_method_makes_of_what_a_matrix_meets(
    method: str, write: Callable[..., Written], checkpoint: Path
) -> None:
    written, source = write(method), Checkpoint.open(checkpoint)
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.2.eh_proj.weight"):
        call = next(call for call in written.calls if np.array_equal(call.w, source.read(name)))
        assert (call.inputs[0].cross is not None) == (method == "qronos")
        assert stored(written, name) == packed(written.file.recipes[name], codes_of(call, method))
    recipe = "model.layers.1.mlp.{experts.*,shared_experts}.down_proj.weight"
    for expert in (0, 7):
        w = source.part("model.layers.1.mlp.experts.*.down_proj.weight", expert)
        call = next(call for call in written.calls if np.array_equal(call.w, w))
        by = "search" if call.few else method
        piece = part(written.file.recipes[recipe], expert)
        assert stored(written, recipe, expert, 9) == packed(piece, codes_of(call, by))


@pytest.mark.parametrize(
    ("quant", "target"), [("int4-g32", "x86"), ("int8", "x86"), ("int4-g32-asym", "onnx"), ("int8-g32", "vulkan")]
)
def test_to_the_nearest_with_a_text_is_the_same_file_as_without(
    quant: str, target: str, write: Callable[..., Written]
) -> None:
    with_text, without = write("rtn", quant, target), write(None, quant, target)
    assert with_text.data == without.data
    assert len(with_text.calls) > 40


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_codes_of_an_fp8_checkpoint_stay_as_they_are(
    method: str, write: Callable[..., Written], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "fp8", tiny_config(num_hidden_layers=2), dtype="float8_e4m3")
    with_text, without = (write(each, "fp8", source=tmp_path / "fp8") for each in (method, None))
    assert with_text.data == without.data


def test_rows_that_a_target_wants_in_another_order_have_the_same_codes(
    write: Callable[..., Written], checkpoint: Path
) -> None:
    """ONNX's experts take gate and up row by row."""
    x86, onnx = (write("search", target=target) for target in ("x86", "onnx"))
    name = "model.layers.1.mlp.{experts.*.gate_proj,shared_experts.gate_proj,experts.*.up_proj,shared_experts.up_proj}"
    found = next(recipe for recipe in onnx.file.recipes if recipe.startswith(name))
    assert any(value.op == "transpose" for value in topological_order([onnx.file.recipes[found]]))
    first = Checkpoint.open(checkpoint).part("model.layers.1.mlp.experts.*.gate_proj.weight", 0)
    ours, theirs = (
        next(call.codes for call in each.calls if call.w.ndim == 3 and np.array_equal(call.w[0], first))
        for each in (x86, onnx)
    )
    assert np.array_equal(ours.codes, theirs.codes)
    rows = np.concatenate([ours.codes[:, row] for row in range(32)])  # gate 0, up 0, gate 1, …
    expected = QTensor(rows, ours.scale.transpose(1, 0, 2).reshape(64, -1), None, ours.format, 64)
    assert stored(onnx, found, 0, 9) == packed(part(onnx.file.recipes[found], 0), expected)


def floats(written: Written, name: str) -> Any:
    """A weight that is stored as float32, in the target's layout if it has one."""
    type = written.file.recipes[name].type
    (data,) = stored(written, name)
    found = np.frombuffer(data, np.float32).reshape(written.file.tensors[name][0].component.shape)
    if not type.layout:
        return found
    *_, n, k = map(int, type.shape)
    return decoded(Packed({written.file.tensors[name][0].component.role: found}, format_of(type), n, k, type.layout))


def test_what_columns_are_multiplied_by_their_norm_is_divided_by(
    write: Callable[..., Written], checkpoint: Path
) -> None:
    written, source, layer = write("awq"), Checkpoint.open(checkpoint), "model.layers.1"
    norm, router = f"{layer}.post_attention_layernorm.weight", f"{layer}.mlp.gate.weight"
    scale = source.read(norm) / floats(written, norm)
    assert np.abs(scale - 1).max() > 0.01
    np.testing.assert_allclose(floats(written, router), source.read(router) * scale, rtol=1e-5)
    experts = source.part(f"{layer}.mlp.experts.*.gate_proj.weight", 0) * scale
    rounded = [call.w[0] for call in written.calls if call.w.shape == (2, *experts.shape)]
    assert any(np.allclose(w, experts, rtol=1e-5) for w in rounded)
    for name in ("model.norm.weight", f"{layer}.self_attn.kv_a_layernorm.weight"):
        np.testing.assert_array_equal(floats(written, name), source.read(name))


def test_scaling_inputs_is_never_worse_than_the_search_without(write: Callable[..., Written]) -> None:
    """Of matrices that alone read their inputs, and whose own rows nothing scales."""
    awq, search = ({entry.recipe: entry.outcome for entry in write(each).log.entries} for each in ("awq", "search"))
    alone = ("self_attn.o_proj.weight", "self_attn.q_b_proj.weight", "mlp.down_proj.weight", "eh_proj.weight")
    found = [name for name in awq if name.endswith(alone) and "shared" not in name]
    assert len(found) == 8
    assert all(awq[name].method == "awq" and search[name].method == "search" for name in found)
    assert all(awq[name].error <= 1.001 * search[name].error for name in found)
    assert sum(awq[name].error for name in found) < 0.99 * sum(search[name].error for name in found)


def test_a_matrix_whose_inputs_nothing_can_scale_says_so(write: Callable[..., Written]) -> None:
    table = {entry["tensor"]: entry for entry in write("awq").log.table() if "experts" not in entry["tensor"]}
    assert table["model.layers.0.self_attn.o_proj.weight"]["method"] == "awq"
    unscaled = {tensor for tensor, found in table.items() if found["method"] == "search"}
    assert "lm_head.weight" in unscaled
    assert all("kv_b_proj" in tensor for tensor in unscaled - {"lm_head.weight"})
    reasons = {table[tensor]["reason"] for tensor in unscaled}
    assert reasons == {"what its inputs come from can not take scales"}


def test_experts_are_read_one_by_one(write: Callable[..., Written]) -> None:
    read = write("gptq").read
    assert all((expert is not None) == ("*" in name) for name, expert in read)


def test_memory_does_not_grow_with_the_number_of_experts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is held at a time: the matrix that is looked at, and those of the workers beside."""
    held = [0, 0]
    evaluate = weights.Writer.evaluate

    def watched(self: weights.Writer, value: Value) -> Any:
        array = evaluate(self, value)
        held[0] += array.nbytes
        held[1] = max(held)
        weakref.finalize(array, lambda nbytes=array.nbytes: held.__setitem__(0, held[0] - nbytes))
        return array

    monkeypatch.setattr(weights.Writer, "evaluate", watched)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    peaks = []
    for experts in (8, 32):
        write_checkpoint(tmp_path / str(experts), tiny_config(n_routed_experts=experts, num_hidden_layers=2))
        held[:] = [0, 0]
        text = CalibrationText((np.arange(90, dtype=np.int32),), "", "")
        folder = tmp_path / f"written-{experts}"
        folder.mkdir()
        write_weights(tmp_path / str(experts), folder, text, "rtn", "int4-g32", "x86", monkeypatch, most_calls=0)
        peaks.append(held[1])
    assert 0 < peaks[1] < 1.5 * peaks[0]  # which of the experts meet in the workers is chance


def test_what_was_done_is_in_the_log(write: Callable[..., Written]) -> None:
    log = write("gptq").log
    summary = log.summary()
    assert summary["asked"] == "gptq"
    assert summary["counts"]["gptq"] > 30
    assert sum(summary["counts"].values()) == len(log.table()) == len(log.entries)
    assert summary["output_error"].keys() == {
        *("attention", "dense mlp", "routed experts", "shared experts", "head", "mtp")
    }
    assert all(0 < error < 0.1 for error in summary["output_error"].values())
    few = [entry for entry in log.table() if "reason" in entry]
    assert len(few) == summary["fallbacks"] == summary["counts"].get("search", 0) > 0
    assert all(entry["method"] == "search" and "it saw" in entry["reason"] for entry in few)
    assert f"{len(few)} of {len(log.entries)} matrices are not rounded by gptq" in log.notes()[0]
    layer = summary["experts"]["model.layers.1.mlp.{experts.*,shared_experts}.down_proj.weight"]
    assert layer.keys() == {"min", "median", "unseen"}


@pytest.mark.parametrize("method", ["search", "awq"])
def test_the_manifest_says_how_weights_were_rounded(
    method: str, checkpoint: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_scales, "ALPHAS", (0.0, 0.1))
    (tmp_path / "text.txt").write_text("words and more words, " * 60)
    options = CompileOptions(quant="int4-g32", method=method, calibration=tmp_path / "text.txt")
    progress = Counting()
    report = pipeline.compile_checkpoint(checkpoint, tmp_path / "out", options, progress)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["method"] == method
    steps = {name: taken for name, taken in progress.stages.items() if "writing" in name or "scales" in name}
    assert all(total == taken > 0 for total, taken in steps.values())
    assert len(steps) == (2 if method == "awq" else 1)
    assert manifest["options"]["calibration"] == "text.txt"
    read = manifest["quantization"]["calibration"]
    assert (read["file"], read["sequences"]) == ("text.txt", 3)
    assert read["tokens"] == 1320
    assert manifest["quantization"]["methods"]["counts"][method] > 0
    table = json.loads((tmp_path / "out" / "rounding.json").read_text())["matrices"]
    assert len(table) == sum(manifest["quantization"]["methods"]["counts"].values())
    assert "rounding.json" in manifest["files"]
    assert report.manifest["quantization"] == manifest["quantization"]


def test_without_a_text_the_method_takes_ours(checkpoint: Path) -> None:
    text = pipeline.read_calibration(checkpoint, CompileOptions(quant="int4-g32", method="gptq"))
    assert text is not None
    assert text.name == ""
    for method in (None, "rtn", "search"):
        assert pipeline.read_calibration(checkpoint, CompileOptions(quant="int4-g32", method=method)) is None


def test_with_a_text_the_best_method_is_chosen_by_default(tmp_path: Path) -> None:
    assert CompileOptions().resolved_method == "rtn"
    assert CompileOptions(calibration=tmp_path / "a.txt").resolved_method == "auto"
    assert CompileOptions(calibration=tmp_path / "a.txt", method="rtn").resolved_method == "rtn"


def test_a_checkpoint_without_a_tokenizer_is_told_so(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", tiny_config())
    with pytest.raises(NoTokenizerError, match=r"has no tokenizer\.json"):
        pipeline.read_calibration(tmp_path / "model", CompileOptions(method="gptq"))


def test_a_method_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(BadOptionError, match="method is 'best'; expected one of rtn, search, gptq"):
        checks.check_method(CompileOptions(method="best"))


@pytest.mark.parametrize("options", [{"method": "gptq"}, {"calibration": Path("a.txt")}])
def test_numbers_that_are_not_rounded_to_codes_have_no_method(options: dict[str, Any]) -> None:
    with pytest.raises(BadOptionError, match="expected none for weights in bfloat16"):
        checks.check_method(CompileOptions(quant="bfloat16", **options))
    checks.check_method(CompileOptions(quant="bfloat16", method="rtn"))


def test_a_search_needs_no_text(
    checkpoint: Path, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for method in ("rtn", "search"):
        options = CompileOptions(quant="int4-g32", method=method)
        report = pipeline.compile_checkpoint(checkpoint, tmp_path / method, options)
        found[method] = (report.out / "weights.safetensors").read_bytes()  # type: ignore[operator]
    assert found["rtn"] != found["search"]
    assert len(found["rtn"]) == len(found["search"])


def test_what_it_will_take_is_told_beforehand(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("words and more words, " * 200)
    options = CompileOptions(quant="int4-g32", method="gptq", calibration=tmp_path / "text.txt")
    found = plan_checkpoint(checkpoint, options).calibration
    assert found is not None
    assert (found.tokens, found.sequences, found.method, found.disk_bytes) == (4400, 9, "gptq", 0)
    twice = plan_checkpoint(checkpoint, replace(options, method="qronos")).calibration
    assert twice is not None and twice.memory_bytes > found.memory_bytes
    monkeypatch.setattr(store, "MEMORY_BYTES", 1 << 20)
    filed = plan_checkpoint(checkpoint, options).calibration
    assert filed is not None and filed.disk_bytes > 1 << 20
    assert plan_checkpoint(checkpoint, CompileOptions(quant="int4-g32")).calibration is None


def test_what_is_told_of_activations_is_what_is_kept(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = Checkpoint.open(checkpoint)
    graphs = lowering.lower(lowered.config, lowered.shapes, CompileOptions(quant="int4-g32"), targets.get("x86"))
    plan = calibrated.plan(graphs.graphs)
    sequences = [np.arange(n, dtype=np.int32) for n in (70, 33)]
    least = [store.MEMORY_BYTES]

    class Watched(store.Store):
        def make(self, *args: Any) -> Any:
            made = super().make(*args)
            least[0] = min(least[0], self._left)
            return made

    monkeypatch.setattr(forward, "Store", Watched)
    source = Checkpoint.open(checkpoint)

    def evaluate(value: Value) -> Any:
        def given(leaf: Value) -> Any:
            name, expert = str(leaf.attrs["name"]), leaf.attrs.get("expert")
            return source.read(name) if expert is None else source.part(name, int(expert))  # type: ignore[arg-type]

        return ops.evaluate([value], given)[0]

    run = forward.Forward(
        plan.main.graph, [forward.Sequences(sequences, {})], evaluate, lambda *given: lambda: None, lambda k: 0
    )
    run.run(plan.main.stages, lambda *given: None)
    assert store.MEMORY_BYTES - least[0] == calibration_cost.kept_bytes(plan.main, sequences)[0]
