"""Models with an indexer on a Vulkan device: prompts several times as long as what is chosen, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dsv3c import runtime, targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import lowering, pipeline
from dsv3c.compiler.options import CompileOptions
from tests.checkpoints import tiny_config
from tests.conformance import runs
from tests.conformance.cases import make_case
from tests.conformance.runs import ArtifactStepper, GraphStepper, relative_error

CONFIGS = {
    "v32": tiny_config("deepseek_v32", num_hidden_layers=2, num_nextn_predict_layers=1),
    "glm": tiny_config("glm_moe_dsa"),  # the last of three layers has the choice of the second
}
OPTIONS = CompileOptions(quant="float32", cache_dtype="f32", target="vulkan")
SCHEDULES = {name: runs.schedules()[name] for name in ("prefill, decode", "chunks of 5", "second joins")}


@pytest.mark.thorough  # a minute each: the driver compiles every kernel for this CPU
@pytest.mark.parametrize("name", CONFIGS)
def test_every_way_to_cut_sequences_into_steps_gives_what_numpy_does(
    name: str, shader_compiler: object, vulkan: str, tmp_path: Path
) -> None:
    case = make_case(name, CONFIGS[name], 3)
    checkpoint = Checkpoint.open(case.write(tmp_path / "checkpoint"))
    lowered = lowering.lower(checkpoint.config, checkpoint.shapes, OPTIONS, targets.get("vulkan"))
    graph = lowered.entries["decode"].graph
    assert {"index_write", "index_topk", "mla_sparse"} <= {value.op for value in graph.values()}
    pipeline.compile_checkpoint(tmp_path / "checkpoint", tmp_path / "artifact", OPTIONS)
    with runtime.load(tmp_path / "artifact", max_batch=4) as model:
        for schedule in SCHEDULES.values():
            expected = runs.run(GraphStepper(graph, checkpoint.read), case.sequences, schedule)
            assert runs.worst(runs.run(ArtifactStepper(model), case.sequences, schedule), expected) <= 1e-4
        if case.has_mtp:
            tokens = case.sequences[0][:30]
            hidden, stepper = model.hidden(tokens[:-1]), GraphStepper(lowered.entries["mtp"].graph, checkpoint.read)
            positions = np.arange(29, dtype=np.int32)
            batch = runs.Batch(tokens[1:], positions, np.zeros_like(positions), np.arange(2, dtype=np.int32)[None])
            assert relative_error(model.mtp_logits(hidden, tokens[1:]), stepper.step(batch, hidden)) <= 1e-4
