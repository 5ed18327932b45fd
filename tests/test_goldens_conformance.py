"""The logits of transformers that are stored for the configs of the conformance tests, without transformers.

Made by `python -m tests.conformance.make_goldens`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.runtime.model import Model
from tests.conformance import runs
from tests.conformance.cases import Array, Case, make_case
from tests.conformance.configs import CONFIGS
from tests.conformance.runs import ArtifactStepper, Batch, GraphStepper, Stepper, relative_error
from tests.conftest import GOLDENS
from tests.selection import shortlist

LIMIT = 1e-4
# Compiling takes seconds: here one config of each model type; `make conformance` compiles all.
COMPILED = (
    "v3-odd-widths-3-shared",
    "v2-group-limited-yarn",
    "glm-mtp",
    "youtu-tied-5-heads",
    "kimi-k25-yarn",
    "v32-mtp-yarn",
    "glm-dsa-real-heads",
    "axk1-grouped-yarn",
    "minicpm3-longrope",
    "mistral4-scaled-queries",
    "longcat-zero-experts",
)
SCHEDULES = ("prefill, decode", "chunks of 5", "second joins")


@dataclass(frozen=True)
class Stored:
    """A golden file: the case made again from it, and for each sequence some rows and their logits."""

    case: Case
    rows: tuple[NDArray[np.int32], ...]
    logits: tuple[Array, ...]
    mtp: Array | None

    @classmethod
    def load(cls, name: str) -> Stored:
        with np.load(GOLDENS / "conformance" / f"{name}.npz") as file:
            case = make_case(name, json.loads(str(file["config"])), int(file["seed"]))
            for index, tokens in enumerate(case.sequences):
                np.testing.assert_array_equal(tokens, file[f"tokens.{index}"])
            rows, logits = (tuple(file[f"{key}.{index}"] for index in range(2)) for key in ("rows", "logits"))
            return cls(case, rows, logits, file.get("mtp"))

    def error(self, stepper: Stepper, schedule: str) -> float:
        """Largest relative error of the stored rows that the schedule covers."""
        found = runs.run(stepper, self.case.sequences, runs.schedules()[schedule])
        whole = [index for index, logits in enumerate(found) if logits.size]
        return max(relative_error(found[index][self.rows[index]], self.logits[index]) for index in whole)


def test_there_is_a_file_for_every_config() -> None:
    assert {path.stem for path in (GOLDENS / "conformance").glob("*.npz")} == set(CONFIGS)
    for name, config in CONFIGS.items():
        assert dict(Stored.load(name).case.config) == config, f"{name} changed: make the goldens again"


@pytest.mark.parametrize("name", shortlist(CONFIGS, COMPILED))
def test_numpy_evaluation(name: str, tmp_path: Path) -> None:
    stored = Stored.load(name)
    checkpoint = Checkpoint.open(stored.case.write(tmp_path))
    for graph_name, graph in runs.graphs(checkpoint).items():
        stepper = GraphStepper(graph, checkpoint.read)
        for schedule in SCHEDULES:
            assert stored.error(stepper, schedule) <= LIMIT, f"{graph_name}, {schedule}"


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.get("num_nextn_predict_layers")])
def test_numpy_evaluation_of_the_mtp_layer(name: str, tmp_path: Path) -> None:
    stored = Stored.load(name)
    checkpoint = Checkpoint.open(stored.case.write(tmp_path))
    tokens = stored.case.sequences[1]
    span = np.arange(tokens.size - 1, dtype=np.int32)
    main, pages = GraphStepper(runs.traced(checkpoint), checkpoint.read), runs.page_tables([tokens.size])
    hidden = main.results(Batch(tokens[:-1], span, np.zeros_like(span), pages))["hidden"]
    assert stored.mtp is not None
    for graph_name, graph in runs.mtp_graphs(checkpoint).items():
        found = GraphStepper(graph, checkpoint.read).step(Batch(tokens[1:], span, np.zeros_like(span), pages), hidden)
        assert relative_error(found, stored.mtp) <= LIMIT, graph_name


@pytest.mark.usefixtures("kernels_for_this_cpu_alone")
@pytest.mark.parametrize("name", shortlist(COMPILED, ["v3-odd-widths-3-shared", "youtu-tied-5-heads"]))
def test_artifact(name: str, tmp_path: Path) -> None:
    stored = Stored.load(name)
    model = runs.compiled(stored.case.write(tmp_path / "checkpoint"), tmp_path / "artifact")
    for entry in (None, *(name for name in ("decode", "prefill") if name in model.artifact.plan.entries)):
        stepper = ArtifactStepper(model, entry)
        for schedule in runs.schedules():
            assert stored.error(stepper, schedule) <= LIMIT, f"{entry}, {schedule}"
    check_mtp(stored, model)


@pytest.mark.parametrize("name", shortlist(CONFIGS, COMPILED))
def test_onnx_artifact(name: str, tmp_path: Path) -> None:
    stored = Stored.load(name)
    model = runs.compiled(stored.case.write(tmp_path / "checkpoint"), tmp_path / "artifact", target="onnx")
    for schedule in runs.schedules():
        assert stored.error(ArtifactStepper(model), schedule) <= LIMIT, schedule
    check_mtp(stored, model)


def check_mtp(stored: Stored, model: Model) -> None:
    if stored.mtp is not None:
        tokens = stored.case.sequences[1]
        found = model.mtp_logits(model.hidden(tokens[:-1]), tokens[1:])
        assert relative_error(found, stored.mtp) <= LIMIT
