"""Cases of the conformance tests compiled for ONNX Runtime, each combination once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering, pipeline
from dsv3c.compiler.driver.lowering import Lowered
from dsv3c.compiler.options import CompileOptions
from tests.conformance import runs
from tests.conformance.cases import Case, case, make_case, seed_of
from tests.conformance.runs import GraphStepper

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Exported:
    """A compiled case: its folder, the graphs it was emitted from, and a session over its model.onnx."""

    case: Case
    folder: Path
    lowered: Lowered
    checkpoint: Checkpoint
    session: Any

    @property
    def tokens(self) -> Ids:
        return self.case.sequences[0]

    def empty_past(self, batch: int = 1) -> dict[str, NDArray[Any]]:
        inputs = {value.name: value for value in self.session.get_inputs() if value.name.startswith("past")}
        dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        return {n: np.zeros((batch, 1, 0, value.shape[3]), dtypes[value.type]) for n, value in inputs.items()}

    def step(
        self, ids: NDArray[Any], mask: NDArray[Any], past: dict[str, NDArray[Any]], **more: NDArray[Any]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """One run as a loop over exported models does it: logits [batch, S, V], and what is the next run's past."""
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -ids.shape[1] :]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **more}
        integers = {name: array.astype(np.int64) for name, array in feed.items()}
        names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
        logits, *present = self.session.run(names, {**integers, **past})
        return logits, dict(zip(past, present, strict=True))

    def run(self, chunks: list[int]) -> NDArray[np.float32]:
        """Logits [tokens, V] of the first sequence, read in chunks."""
        past, done, found = self.empty_past(), 0, []
        for count in chunks:
            ids = self.tokens[None, done : done + count]
            done += count
            logits, past = self.step(ids, np.ones((1, done)), past)
            found.append(logits[0])
        return np.concatenate(found)

    def evaluated(self, entry: str, chunks: list[int]) -> NDArray[np.float32]:
        """The same of the numpy evaluation of an entry's graph, quantised weights and all."""
        stepper = GraphStepper(self.lowered.entries[entry].graph, self.checkpoint.read)
        return runs.run(stepper, [self.tokens], [[(0, count)] for count in chunks])[0]


Export = Callable[..., Exported]


def export_case(folder: Path, made: Case, options: CompileOptions) -> Exported:
    """The case compiled into `folder`."""
    made.write(folder / "checkpoint")
    pipeline.compile_checkpoint(folder / "checkpoint", folder / "artifact", options)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, options, targets.configured(options.target))
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    path = str(folder / "artifact" / "model.onnx")
    session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    return Exported(made, folder / "artifact", lowered, checkpoint, session)


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    @cache
    def exported(name: str, quant: str = "float32", target: str = "onnx", **changes: Any) -> Exported:
        made, folder = case(name), tmp_path_factory.mktemp(name)
        made = make_case(name, {**made.config, **changes}, seed_of(name)) if changes else made
        return export_case(folder, made, CompileOptions(quant=quant, target=target))

    return exported
