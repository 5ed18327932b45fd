"""ONNX artifacts behind the same Model: the reference's tokens, pages in place and apart, and what can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from dsv3c import runtime
from dsv3c.runtime.cli import run as command
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.errors import (
    GraphFailed,
    GraphInvalid,
    HashMismatch,
    ManifestInvalid,
    NoCallTimes,
    OnnxRuntimeMissing,
    ProviderMissing,
    StepInvalid,
)
from dsv3c.runtime.measure.bench import Bench, Settings
from dsv3c.runtime.model import Model
from tests.conformance.runs import relative_error
from tests.conftest import BUNDLED_MODEL
from tests.runtime.engine_checks import check_batches, check_drafts

Ids = NDArray[np.int32]
LIMIT = 1e-5


@pytest.fixture(scope="module")
def artifact(bundled_artifact: Callable[..., Path]) -> Path:
    return bundled_artifact("float32", "onnx")


@pytest.fixture(scope="module")
def model(artifact: Path) -> Iterator[Model]:
    with runtime.load(artifact, context=256, max_batch=3) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def ids() -> Ids:
    return np.load(BUNDLED_MODEL / "reference_logits.npz")["ids"].astype(np.int32)


def copied(artifact: Path, folder: Path) -> Path:
    shutil.copytree(artifact, folder / "artifact")
    return folder / "artifact"


def edit_target(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["target"] |= changes
    path.write_text(json.dumps(manifest))


def replace_graph(folder: Path, content: bytes) -> None:
    """Another model.onnx, of which the manifest knows."""
    (folder / "model.onnx").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_reference_tokens(model: Model) -> None:
    reference = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    wanted = reference["greedy_ids"]
    found = model.generate(reference["prompt"], temperature=0, max_new_tokens=len(wanted))
    assert list(found.token_ids) == wanted


def test_reference_logits(model: Model) -> None:
    reference = np.load(BUNDLED_MODEL / "reference_logits.npz")
    assert relative_error(model.logits(reference["ids"])[reference["rows"]], reference["logits"]) <= LIMIT


def test_pages_apart_give_what_pages_in_place_give(model: Model, ids: Ids) -> None:
    """Two sequences that grow by turns: the pages of neither follow one another. Then a fork that copies a page."""
    texts = (ids[:60], ids[::-1][:60].copy())
    expected = [model.logits(text) for text in texts]
    sequences = [model.new_sequence() for _ in texts]
    for begin in range(0, 60, 20):
        requests = [
            Request(sequence, text[begin : begin + 20], "all") for sequence, text in zip(sequences, texts, strict=True)
        ]
        for found, whole in zip(model.session.run(requests), expected, strict=True):
            assert relative_error(found, whole[begin : begin + 20]) <= LIMIT
    assert np.any(np.diff(sequences[0].pages) != 1), "the pages follow one another: nothing was tested"
    fork = sequences[0].fork(41)
    (found,) = model.session.run([Request(fork, texts[0][41:50], "all")])
    assert relative_error(found, expected[0][41:50]) <= LIMIT
    (found,) = model.session.run([Request(sequences[0], texts[1][:1], "last")])
    assert relative_error(found, model.logits(np.append(texts[0], texts[1][0]))[-1:]) <= LIMIT
    for sequence in (*sequences, fork):
        sequence.close()


def test_rolling_back(model: Model, ids: Ids) -> None:
    sequence = model.new_sequence()
    model.session.run([Request(sequence, ids[:40], "none")])
    sequence.truncate(25)
    (found,) = model.session.run([Request(sequence, ids[25:30], "all")])
    sequence.close()
    assert relative_error(found, model.logits(ids[:30])[25:]) <= LIMIT


def test_rows_are_those_asked_for(model: Model, ids: Ids) -> None:
    expected = model.logits(ids[:12])
    pages, rows = [np.arange(1)], np.array([3, 9, 5])
    found = model.session.step(ids[:12], np.arange(12), np.zeros(12, int), pages, rows).logits
    assert relative_error(found, expected[rows]) <= LIMIT


def test_positions_with_a_hole_are_refused(model: Model, ids: Ids) -> None:
    with pytest.raises(StepInvalid, match="positions: those of one sequence must follow one another"):
        model.session.step(ids[:3], [0, 1, 3], [0, 0, 0], [np.arange(1)], [2])


def test_report_and_bench(artifact: Path, model: Model) -> None:
    report = model.report()
    assert (report["device"], report["provider"]) == ("onnxruntime", "CPUExecutionProvider")
    assert report["cache_bytes"] == report["cache_slots"] * model.artifact.plan.slot_bytes
    with Bench(artifact, Settings(prompts=(8,), generated=(4,), depths=(0, 20), repetitions=1)) as bench:
        assert [result.name for result in bench.results()] == ["pp8", "tg4", "pp8 @ d20", "tg4 @ d20"]
        with pytest.raises(NoCallTimes, match="no kernel calls of ours"):
            bench.breakdowns()


def test_generate_command(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["generate", str(artifact), "-p", "Once upon a time", "-n", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time, when I was")


def test_package_that_is_missing_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(OnnxRuntimeMissing, match="pip install onnxruntime"):
        runtime.load(artifact)


def test_provider_that_this_build_lacks(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    folder = copied(artifact, tmp_path)
    edit_target(folder, provider="cuda")
    with pytest.raises(ProviderMissing, match="has no provider cuda; it has CPUExecutionProvider"):
        runtime.load(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"provider": "tpu"}, "'tpu' is not one of cpu, cuda, webgpu"),
        ({"provider": 3}, "provider"),
        ({"graphs": {"decode": "model.onnx"}}, "must name a file for each of decode, mtp"),
        ({"graphs": {"decode": "../model.onnx", "mtp": "mtp.onnx"}}, "is not listed in files"),
        ({"graphs": []}, "graphs"),
    ],
    ids=str,
)
def test_manifest_is_checked(changes: dict[str, object], says: str, artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    edit_target(folder, **changes)
    with pytest.raises(ManifestInvalid, match=says):
        runtime.load(folder)


def test_graph_that_changed_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(HashMismatch, match=r"model\.onnx"):
        runtime.load(folder)


def test_what_is_no_graph_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    replace_graph(folder, b"\x00garbage" * 100)
    with pytest.raises(GraphInvalid, match=r"model\.onnx"):
        runtime.load(folder)


@pytest.mark.parametrize("name", ["past_key_values.99.key", "other"])
def test_graph_of_another_model_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    past = next(value for value in model.graph.input if value.name.startswith("past"))
    for node in model.graph.node:
        node.input[:] = [name if item == past.name else item for item in node.input]
    past.name = name
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(GraphInvalid, match=f"has no input {name}"):
        runtime.load(folder)


def value(values: Any, name: str) -> Any:
    return next(item for item in values if item.name == name)


def ids_of_32_bits(graph: Any) -> None:
    value(graph.input, "input_ids").type.tensor_type.elem_type = onnx.TensorProto.INT32
    for node in graph.node:
        node.input[:] = ["wide_ids" if item == "input_ids" else item for item in node.input]
    graph.node.insert(0, onnx.helper.make_node("Cast", ["input_ids"], ["wide_ids"], to=onnx.TensorProto.INT64))


def another_output(op: str, *more: str, rank: int = 3, **attrs: Any) -> Callable[[Any], None]:
    """The logits become what `op` makes of them."""

    def change(graph: Any) -> None:
        next(node for node in graph.node if node.output[0] == "logits").output[0] = "own_logits"
        graph.node.append(onnx.helper.make_node(op, ["own_logits", *more], ["logits"], **attrs))
        found = value(graph.output, "logits")
        found.CopyFrom(
            onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None] * (rank - 1) + [2048])
        )

    return change


def without_logits(graph: Any) -> None:
    graph.output.remove(value(graph.output, "logits"))


def of_five_tokens(graph: Any) -> None:
    value(graph.input, "position_ids").type.tensor_type.shape.dim[1].dim_value = 5


def keeping_all_rows(graph: Any) -> None:
    graph.input.remove(value(graph.input, "num_logits_to_keep"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (ids_of_32_bits, r"the input input_ids is tensor\(int32\)"),
        (another_output("Unsqueeze", "zero", rank=4), r"the output logits is tensor\(float\) \[.*\], it must be"),
        (without_logits, "it has no output logits"),
        (of_five_tokens, r"the input position_ids is tensor\(int64\) \['batch', 5\]"),
        (keeping_all_rows, "it has no input num_logits_to_keep"),
    ],
    ids=["dtype", "rank", "output", "dim", "input"],
)
def test_inputs_and_outputs_must_be_those_of_the_plan(
    change: Callable[[Any], None], says: str, artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "zero"))
    change(model.graph)
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(GraphInvalid, match=says):
        runtime.load(folder)


def test_each_graph_has_the_inputs_of_its_entry(artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    edit_target(folder, graphs={"decode": "model.onnx", "mtp": "model.onnx"})
    with pytest.raises(GraphInvalid, match="it has no input hidden_states"):
        runtime.load(folder)


def test_a_graph_that_fails_when_run_is_an_error(artifact: Path, tmp_path: Path) -> None:
    folder = copied(artifact, tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    another_output("Concat", "own_logits", axis=1)(model.graph)
    replace_graph(folder, model.SerializeToString())
    with runtime.load(folder) as loaded, pytest.raises(GraphFailed, match="failed to run the graph of"):
        loaded.logits([1, 2])


def test_linked_weights_are_read(artifact: Path, tmp_path: Path, ids: Ids) -> None:
    """ONNX Runtime itself follows no link that leads out of the graph's folder."""
    folder = copied(artifact, tmp_path)
    (folder / "weights.safetensors").rename(tmp_path / "elsewhere")
    (folder / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with runtime.load(folder) as loaded, runtime.load(artifact) as whole:
        assert np.array_equal(loaded.logits(ids[:5]), whole.logits(ids[:5]))


@pytest.mark.parametrize(
    "change", [{"location": "../weights.safetensors"}, {"offset": str(1 << 40)}, {"length": str(1 << 40)}], ids=str
)
def test_external_data_outside_of_the_weights_file_are_refused(
    change: dict[str, str], artifact: Path, tmp_path: Path
) -> None:
    folder = copied(artifact, tmp_path)
    shutil.copy(folder / "weights.safetensors", tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        entry.value = change.get(entry.key, entry.value)
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(GraphInvalid, match=r"model\.onnx"):
        runtime.load(folder)


def test_a_batch_is_answered_as_each_prompt_alone(model: Model) -> None:
    check_batches(model)


def test_speculation_changes_no_text(model: Model, artifact: Path) -> None:
    with runtime.load(artifact, context=256, max_batch=3, speculate="ngram") as drafted:
        check_drafts(drafted, model)
