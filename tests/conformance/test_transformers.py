"""Logits against transformers: the traced graph, the fused graphs in both forms of attention, the compiled artifact.

Each is run in every schedule of `runs.schedules`: prefill in one step, in chunks, 16 decode steps, two sequences of
unequal length in one batch. `python -m tests.conformance.report` prints the table of errors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: make conformance")
pytest.importorskip("transformers", reason="transformers is not installed: make conformance")

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.runtime.engine.session import Request
from tests.conformance import runs
from tests.conformance.configs import CONFIGS
from tests.conformance.measure import ENTRIES, GRAPHS, LIMIT, Subject
from tests.conformance.runs import GraphStepper, relative_error, worst

# Of a model without shared experts.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

WITH_MTP = [name for name, config in CONFIGS.items() if config.get("num_nextn_predict_layers")]

Subjects = Callable[[str], Subject]
Record = Callable[[str, str, float], None]


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    made: dict[str, Subject] = {}

    def subject(name: str) -> Subject:
        if name not in made:
            made[name] = Subject(name, tmp_path_factory.mktemp(name))
        return made[name]

    return subject


def check(name: str, way: str, errors: dict[str, float], record: Record) -> None:
    record(name, way, max(errors.values()))
    assert {schedule: error for schedule, error in errors.items() if error > LIMIT} == {}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CONFIGS)
def test_numpy_evaluation(name: str, graph: str, subjects: Subjects, record: Record) -> None:
    check(name, f"numpy {graph}", subjects(name).graph_errors(graph), record)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", WITH_MTP)
def test_numpy_evaluation_of_the_mtp_layer(name: str, graph: str, subjects: Subjects, record: Record) -> None:
    check(name, f"MTP numpy {graph}", {"prefill": subjects(name).mtp_graph_error(graph)}, record)


@pytest.mark.parametrize("way", ENTRIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_artifact(name: str, way: str, subjects: Subjects, record: Record) -> None:
    subject, entry = subjects(name), ENTRIES[way]
    if entry == "prefill" and not subject.rebuilding_pays:
        assert not subject.has_entry(entry)
        pytest.skip("rebuilding keys and values never pays at these sizes: the artifact has no such entry")
    check(name, way, subject.artifact_errors(entry), record)


@pytest.mark.parametrize("name", CONFIGS)
def test_onnx_artifact(name: str, subjects: Subjects, record: Record) -> None:
    check(name, "onnx", subjects(name).onnx_errors(), record)


@pytest.mark.parametrize("name", CONFIGS)
def test_runtime_calls(name: str, subjects: Subjects) -> None:
    """The calls that cut sequences into steps themselves."""
    subject = subjects(name)
    assert relative_error(subject.model.logits(subject.case.sequences[0]), subject.expected[0]) <= LIMIT
    assert subject.hidden_error() <= LIMIT
    sequences = [subject.model.new_sequence() for _ in subject.case.sequences]
    requests = [Request(at, ids, "all") for at, ids in zip(sequences, subject.case.sequences, strict=True)]
    assert worst(subject.model.session.run(requests), subject.expected) <= LIMIT
    for sequence in sequences:
        sequence.close()


@pytest.mark.parametrize("name", WITH_MTP)
def test_mtp_layer_of_the_artifact(name: str, subjects: Subjects, record: Record) -> None:
    subject = subjects(name)
    check(name, "MTP artifact", {"prefill": subject.mtp_artifact_error(subject.model)}, record)
    check(name, "MTP onnx", {"prefill": subject.mtp_artifact_error(subject.onnx_model)}, record)


@pytest.mark.parametrize("original", [True, False], ids=["published-names", "names-in-memory"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "v3-no-shared" and name not in WITH_MTP])
def test_what_transformers_saves_is_read(name: str, original: bool, subjects: Subjects, tmp_path: Path) -> None:
    """One tensor an expert as in published checkpoints, or the experts of a layer in one: the weights are the same."""
    subject = subjects(name)
    subject.reference.model.save_pretrained(tmp_path, save_original_format=original)
    saved, written = Checkpoint.open(tmp_path), subject.checkpoint
    assert saved.shapes == written.shapes
    for tensor in written.shapes:
        np.testing.assert_array_equal(saved.read(tensor), written.read(tensor), err_msg=tensor)
    tokens = subject.case.sequences[0]
    found = runs.run(GraphStepper(runs.traced(saved), saved.read), [tokens], [[(0, tokens.size)]])
    assert relative_error(found[0], subject.expected[0]) <= LIMIT


CHANGES = {
    "v3-grouped-yarn": [("rope_interleave", False), ("n_group", 1), ("topk_group", 3), ("routed_scaling_factor", 2.4)],
    "v3-no-q-lora-one-group": [("rope_interleave", True), ("norm_topk_prob", True), ("rope_theta", 9000.0)],
    "v3-mtp-yarn": [("rope_scaling", None)],
    "v2-group-limited-yarn": [("topk_method", "greedy"), ("topk_group", 3)],
    "glm-grouped-5-heads": [("rms_norm_eps", 1e-6)],
    "axk1-grouped-yarn": [("rms_norm_eps", 1e-6)],
    "mistral4-scaled-queries": [("n_group", 1), ("topk_group", 3)],
    "longcat-zero-experts": [
        *(("mla_scale_q_lora", False), ("mla_scale_kv_lora", False)),
        *(("rms_norm_eps", 1e-6), ("routed_scaling_factor", 5.9)),
    ],
    "minicpm3-own-head": [("scale_emb", 11), ("scale_depth", 1.9), ("dim_model_base", 17)],
    "youtu-own-head-yarn": [("rope_scaling", None), ("rms_norm_eps", 1e-6)],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_hyperparameter_shows(name: str, subjects: Subjects, tmp_path: Path) -> None:
    """The comparison is worth something: reading one value of the config wrongly is far beyond the limit."""
    subject = subjects(name)
    tokens = subject.case.sequences[0]
    for key, value in CHANGES[name]:
        changed = Checkpoint.open(_with(subject, tmp_path / key, key, value))
        found = runs.run(GraphStepper(runs.traced(changed), changed.read), [tokens], [[(0, tokens.size)]])
        assert relative_error(found[0], subject.expected[0]) > 20 * LIMIT, key


def _with(subject: Subject, folder: Path, key: str, value: object) -> Path:
    shutil.copytree(subject.folder / "checkpoint", folder)
    config = {**subject.case.config, key: value}
    if key == "n_group":
        config["topk_group"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder
