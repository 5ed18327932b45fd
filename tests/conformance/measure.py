"""How far each way of running a model is from transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.model import Model
from tests.conformance import runs
from tests.conformance.cases import Array, Case, case
from tests.conformance.reference import Reference
from tests.conformance.runs import ArtifactStepper, Batch, GraphStepper, Stepper, relative_error, worst

LIMIT = 1e-4
GRAPHS = ("traced", *runs.FORMS)
ENTRIES = {"artifact": None, "artifact absorbed": "decode", "artifact materialized": "prefill"}

# Errors by config and way, for the report; the ways of the MTP layer begin with "MTP".
Table = dict[str, dict[str, float]]


@dataclass
class Subject:
    """One case, its checkpoint and what transformers makes of it; everything is computed when first asked for."""

    name: str
    folder: Path
    case: Case = field(init=False)

    def __post_init__(self) -> None:
        self.case = case(self.name)
        self.case.write(self.folder / "checkpoint")

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.folder / "checkpoint")

    @cached_property
    def expected(self) -> list[Array]:
        return [self.reference.logits(tokens) for tokens in self.case.sequences]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.open(self.folder / "checkpoint")

    @cached_property
    def graphs(self) -> Mapping[str, runs.Graph]:
        return runs.graphs(self.checkpoint)

    @cached_property
    def model(self) -> Model:
        return runs.compiled(self.folder / "checkpoint", self.folder / "artifact")

    @cached_property
    def onnx_model(self) -> Model:
        return runs.compiled(self.folder / "checkpoint", self.folder / "onnx", target="onnx")

    def graph_errors(self, graph: str) -> dict[str, float]:
        """The error of each schedule, evaluated in numpy."""
        return self._errors(GraphStepper(self.graphs[graph], self.checkpoint.read))

    def artifact_errors(self, entry: str | None) -> dict[str, float]:
        """The error of each schedule, run by the compiled artifact."""
        return self._errors(ArtifactStepper(self.model, entry))

    def onnx_errors(self) -> dict[str, float]:
        """The error of each schedule, run by ONNX Runtime."""
        return self._errors(ArtifactStepper(self.onnx_model))

    @property
    def rebuilding_pays(self) -> bool:
        """Whether a step can be so large that attention on rebuilt keys and values is the cheaper form; that over
        positions that are chosen has no such form."""
        config = self.checkpoint.config
        return not config.indexer_types and lowering.materialize_from(config) <= CompileOptions().max_tokens

    def has_entry(self, entry: str | None) -> bool:
        return entry is None or entry in self.model.artifact.plan.entries

    def _errors(self, stepper: Stepper) -> dict[str, float]:
        # One stepper for all: the cache is full of what the runs before have left.
        found = {}
        for name, schedule in runs.schedules().items():
            found[name] = worst(runs.run(stepper, self.case.sequences, schedule), self.expected)
        return found

    # --- the MTP layer: row t has seen the tokens up to t + 1, and the main model's state at t

    @cached_property
    def expected_mtp(self) -> list[Array]:
        return [self.reference.mtp_logits(self.case, tokens) for tokens in self.case.sequences]

    def mtp_graph_error(self, graph: str) -> float:
        chosen = runs.mtp_graphs(self.checkpoint)[graph]
        found = []
        for tokens in self.case.sequences:
            count = tokens.size - 1
            span = np.arange(count, dtype=np.int32)
            batch = Batch(tokens[1:], span, np.zeros_like(span), runs.page_tables([count]))
            hidden = self.reference.hidden(tokens[:-1])
            found.append(GraphStepper(chosen, self.checkpoint.read).step(batch, hidden))
        return worst(found, self.expected_mtp)

    def mtp_artifact_error(self, model: Model) -> float:
        found = [model.mtp_logits(model.hidden(ids[:-1]), ids[1:]) for ids in self.case.sequences]
        return worst(found, self.expected_mtp)

    def hidden_error(self) -> float:
        tokens = self.case.sequences[0]
        return relative_error(self.model.hidden(tokens), self.reference.hidden(tokens))


def markdown(table: Table) -> str:
    """Rows configs, columns ways, the largest error in the last row."""
    ways = list(dict.fromkeys(way for errors in table.values() for way in errors))
    lines = ["| config | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    for name, errors in [*table.items(), ("**largest**", _largest(table))]:
        lines.append(f"| {name} | " + " | ".join(f"{errors[w]:.1e}" if w in errors else "" for w in ways) + " |")
    return "\n".join(lines)


def _largest(table: Table) -> dict[str, float]:
    found: dict[str, float] = {}
    for errors in table.values():
        for way, error in errors.items():
            found[way] = max(found.get(way, 0.0), error)
    return found
