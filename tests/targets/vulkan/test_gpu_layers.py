"""The bundled model with its last layers on a Vulkan device and the first ones on the CPU."""

import json

import numpy as np
import pytest

from dsv3c import runtime
from tests.conformance.runs import relative_error
from tests.conftest import BUNDLED_MODEL
from tests.runtime.engine_checks import check_batches, check_drafts

LAYERS = 4


@pytest.fixture(scope="module")
def cpu_artifact(bundled_artifact):
    return bundled_artifact("float32")


@pytest.mark.parametrize("gpu_layers", range(LAYERS + 1))
def test_the_reference_is_met_wherever_the_layers_run(gpu_layers, artifacts, vulkan, cpu_artifact):
    tokens = json.loads((BUNDLED_MODEL / "reference_greedy.json").read_text(encoding="utf-8"))
    logits = np.load(BUNDLED_MODEL / "reference_logits.npz")
    with runtime.load(artifacts("float32"), gpu_layers=gpu_layers, cpu_artifact=cpu_artifact) as model:
        found = model.generate(tokens["prompt"], temperature=0, max_new_tokens=30)
        assert list(found.token_ids) == tokens["greedy_ids"][:30]
        assert relative_error(model.logits(logits["ids"])[logits["rows"]], logits["logits"]) <= 1e-4
        report = model.report()
    used = {0: {"cpu"}, LAYERS: {"vulkan"}}.get(gpu_layers, {"cpu", "vulkan"})
    sides = [report] if "lower" not in report else [report["lower"], report["upper"]]
    assert {side["device"] for side in sides} == used


def test_a_batch_is_answered_as_each_prompt_alone_on_both_devices(artifacts, vulkan, cpu_artifact):
    where = {"gpu_layers": 2, "cpu_artifact": cpu_artifact, "context": 256, "max_batch": 4}
    with runtime.load(artifacts("float32"), **where) as model:
        check_batches(model)
        with runtime.load(artifacts("float32"), **where, speculate="mtp") as drafted:
            check_drafts(drafted, model)
