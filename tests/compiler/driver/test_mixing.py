"""A format for each weight: given by a plan, or found for a budget; on a tiny checkpoint, without kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.weight_names import weight_name
from dsv3c.compiler.driver import costs, lowering, mixing, pipeline
from dsv3c.compiler.errors import BadOptionError, BudgetError, PlanNameError
from dsv3c.compiler.formats.table import FORMATS
from dsv3c.compiler.options import CompileOptions
from dsv3c.compiler.quantisation import output_errors
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.quant_plan import NAME, QuantPlan, Weight
from dsv3c.runtime.progress import Silent
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.driver.counting import Counting
from tests.compiler.driver.fake_target import TARGET, FakeTarget

GATE_UP = "layers.1.experts.gate_up"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config(num_nextn_predict_layers=1))
    return folder


@pytest.fixture(scope="module")
def source(tiny: Path) -> Checkpoint:
    return Checkpoint.open(tiny)


@pytest.fixture
def some_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a text: the tiny checkpoint has no tokenizer."""
    tokens = np.random.default_rng(0).integers(0, 96, (2, 12)).astype(np.int32)
    monkeypatch.setattr(costs, "text_windows", lambda checkpoint, text, limit: tokens)


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """Budgets differ from test to test; what formats cost is the same, and takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_by_outputs", "_by_weight_error"):
            patch.setattr(costs, name, remembered(getattr(costs, name)))
        yield


def remembered(measure: Callable[..., costs.Costs]) -> Callable[..., costs.Costs]:
    found: list[costs.Costs] = []

    def once(*given: Any) -> costs.Costs:
        found[:] = found or [measure(*given)]
        return found[0]

    return once


def settled(source: Checkpoint, **options: Any) -> tuple[CompileOptions, QuantPlan]:
    options_, plan = pipeline.mixed(source, CompileOptions(**options), TARGET, Silent(), None)
    assert plan is not None
    return options_, plan


def formats_of(source: Checkpoint, options: CompileOptions) -> dict[str, set[str]]:
    """The formats that each weight has in the graphs of all entries."""
    found: dict[str, set[str]] = {}
    for entry in lowering.lower(source.config, source.shapes, options, TARGET).entries.values():
        for value in entry.graph.values():
            if value.op == "quantize":
                found.setdefault(weight_name(value.inputs[0]), set()).add(str(value.attrs["format"]))
    return found


def written(tmp_path: Path, weights: dict[str, str]) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"weights": weights}))
    return path


def test_a_weight_has_one_format_in_all_entries_and_the_router_none(source: Checkpoint, tmp_path: Path) -> None:
    path = written(tmp_path, {"layers.*.attention.*": "int4-g32", GATE_UP: "int5-g64", "head": "bfloat16"})
    options, plan = settled(source, quant="int8", quant_plan=path, max_tokens=64)
    found = formats_of(source, options)
    assert {name: formats for name, formats in found.items() if len(formats) > 1} == {}
    assert found["layers.0.attention.kv_b_proj"] == {"int4-g32"}
    assert (found[GATE_UP], found["head"]) == ({"int5-g64"}, {"bfloat16"})
    assert (found["layers.2.experts.gate_up"], found["embedding"]) == ({"int8"}, {"bfloat16"})
    assert found["layers.1.mlp.gate"] == {"float32"}
    assert plan.formats() == {
        name: next(iter(formats)) for name, formats in found.items() if "mlp.gate" not in name[-8:]
    }


def test_what_is_asked_for_the_head_goes_before_the_plan(source: Checkpoint, tmp_path: Path) -> None:
    path = written(tmp_path, {"head": "bfloat16", "embedding": "int8"})
    options, _ = settled(source, quant_plan=path, head_quant="float32")
    assert (options.resolved_head_quant, options.resolved_embed_quant) == ("float32", "int8")


def test_a_router_has_no_format_to_choose(source: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PlanNameError, match=r"layers\.1\.mlp\.gate"):
        settled(source, quant_plan=written(tmp_path, {"layers.1.mlp.gate": "int8"}))


@pytest.mark.parametrize("calibration", [None, Path("text")])
@pytest.mark.usefixtures("some_text")
def test_auto_stays_within_the_bits_and_says_what_they_cost(source: Checkpoint, calibration: Path | None) -> None:
    options, plan = settled(source, quant="auto", target_bpw=6.5, calibration=calibration)
    assert 6.0 < plan.bits() <= 6.5
    assert ("KL" in plan.facts["measure"]) == (calibration is not None)
    assert plan.facts["no_mix_costs_less_than"] <= plan.facts["cost"]
    assert all(row.sensitivity is not None for row in plan.rows if row.weight.role == "linear")
    assert len(set(options.formats.values())) > 1


@pytest.mark.usefixtures("some_text")
def test_more_bits_cost_less(source: Checkpoint) -> None:
    cost = [settled(source, quant="auto", target_bpw=bits, calibration=Path("t"))[1].facts["cost"] for bits in (6, 9)]
    assert cost == sorted(cost, reverse=True) and cost[0] > cost[-1]


def test_the_whole_file_stays_within_the_size(
    source: Checkpoint, tiny: Path, tmp_path: Path, fake_target: FakeTarget
) -> None:
    report = pipeline.compile_checkpoint(tiny, tmp_path / "out", CompileOptions(quant="auto", max_size=215_000))
    assert report.out is not None
    assert 210_000 < (report.out / "weights.safetensors").stat().st_size <= 215_000
    stored = json.loads((report.out / NAME).read_text())["weights"]
    assert {name: row["format"] for name, row in stored.items()}.items() >= report.manifest["quantization"][
        "formats"
    ].items()
    manifest = json.loads((report.out / "manifest.json").read_text())
    assert NAME in manifest["files"]
    assert 4 < manifest["quantization"]["bits_per_weight"] < 9


def test_a_plan_given_back_makes_the_same_weights(tiny: Path, tmp_path: Path, fake_target: FakeTarget) -> None:
    first = pipeline.compile_checkpoint(tiny, tmp_path / "a", CompileOptions(quant="auto", target_bpw=6.5))
    assert first.out is not None
    pipeline.compile_checkpoint(tiny, tmp_path / "b", CompileOptions(quant="int8", quant_plan=first.out / NAME))
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"target_bpw": 1.0}, r"linear weights within 1 bits each: the least possible is \d\.\d+ bits"),
        ({"max_size": 1000}, r"weights file within 1\.00 kB \(1000 bytes\): the least possible is .* bytes\)"),
    ],
)
def test_a_budget_that_nothing_meets_says_the_least(budget: dict[str, Any], says: str, source: Checkpoint) -> None:
    with pytest.raises(BudgetError, match=says):
        settled(source, quant="auto", **budget)


def test_the_least_that_is_told_can_be_had(source: Checkpoint) -> None:
    with pytest.raises(BudgetError) as caught:
        settled(source, quant="auto", max_size=1000)
    least = int(str(caught.value).partition("least possible is ")[2].partition("(")[2].partition(" ")[0])
    _, plan = settled(source, quant="auto", max_size=least)
    assert plan.bits() > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"quant": "auto"}, "quant is 'auto'; expected one budget"),
        ({"quant": "auto", "target_bpw": 4.0, "max_size": 9}, "expected one budget"),
        ({"target_bpw": 4.0}, "quant is 'int8'; expected auto, as target_bpw is given"),
        ({"quant": "auto", "target_bpw": 0.0}, "target_bpw is 0.0; expected a number above 0"),
        ({"quant": "auto", "target_bpw": 4.0, "quant_plan": Path("p")}, "a plan says what auto would choose"),
    ],
)
def test_budgets_and_plans_that_do_not_go_together_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadOptionError, match=says):
        CompileOptions(**options)


def weights_and_models(source: Checkpoint) -> tuple[list[Weight], dict[str, costs.Experiment]]:
    graphs = lowering.float_graphs(source.config, source.shapes, CompileOptions())
    tokens = np.random.default_rng(1).integers(0, 96, (2, 10)).astype(np.int32)
    return mixing.weights_of(graphs.values()), costs.experiments(source, graphs, tokens)


def test_the_kl_of_a_change_is_that_of_the_graph_with_the_weight_rounded(source: Checkpoint) -> None:
    """Against a whole evaluation of the graph, with the one recipe in its format."""
    weights, models = weights_and_models(source)
    model = models["decode"]
    weight = next(each for each in weights if each.name == GATE_UP)
    changed = model.rounded(weight, FORMATS["int4-g32"])
    graph = lowering.float_graphs(source.config, source.shapes, CompileOptions())["decode"]
    pass_ = replace(
        lowering.passes("absorbed", CompileOptions(quant="float32"), TARGET, {})[-3], named={GATE_UP: "int4-g32"}
    )  # type: ignore[type-var]
    rounded, _ = pass_.run(graph)
    tokens = np.random.default_rng(1).integers(0, 96, (2, 10)).astype(np.int32)
    again = costs.Experiment(rounded, costs.step_inputs(tokens, 16), source.read, 16)
    assert np.allclose(model.logits(changed), again.result("logits"), atol=1e-5)
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (model.result("logits"), again.result("logits")))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert model.kl(changed) == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-2)
    assert model.kl({}) == model.error({}) == 0


def test_every_weight_is_seen_by_a_model_and_fewer_bits_cost_more(source: Checkpoint) -> None:
    weights, models = weights_and_models(source)
    for weight in (each for each in weights if each.role == "linear"):
        entry = next(name for name, model in models.items() if any(map(model.has, weight.recipes)))
        assert entry == ("mtp" if weight.name.startswith("layers.3.") else "decode")
        cost = costs.by_error(models[entry], weight, ["int8-g32", "int5-g32", "int4-g32"])
        assert 0 < cost["int8-g32"] < cost["int5-g32"] < cost["int4-g32"]


def calibration() -> CalibrationText:
    return CalibrationText(tuple(np.random.default_rng(1).integers(0, 96, (2, 40)).astype(np.int32)), "text", "")


def test_a_large_model_is_measured_by_the_outputs_of_its_matrices(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the products of a whole evaluation on the same tokens."""
    graphs = lowering.float_graphs(source.config, source.shapes, CompileOptions())
    text, tried, progress = calibration(), {"int8": 2, "int4-g32": 1}, Counting()
    model = costs.experiments(source, graphs, np.stack(text.sequences))["decode"]
    linear = [weight for weight in mixing.weights_of(graphs.values()) if weight.role == "linear"]
    sizes = {weight.name: tried for weight in linear}
    monkeypatch.setattr(costs, "EVALUABLE", 0)
    monkeypatch.setattr(output_errors, "_SAMPLE", 1000)
    found = costs.measured(source, graphs, linear, sizes, CompileOptions(), text, progress, None)
    assert found.measure == "relative square error of the outputs, on 80 tokens"
    dense = [weight for weight in linear if weight.name.startswith("layers.0.")]
    assert len(dense) == 6
    for weight in dense:
        expected = {name: model.error(model.rounded(weight, FORMATS[name])) for name in tried}
        assert found.by_weight[weight.name] == pytest.approx(expected, rel=1e-2), weight.name
    assert all(0 < costs["int8"] < costs["int4-g32"] for costs in found.by_weight.values())
    drafting, main = (found.by_weight[f"layers.{layer}.experts.gate_up"]["int4-g32"] for layer in (3, 2))
    assert drafting == pytest.approx(costs.DRAFT_SHARE * main, rel=0.5), "of a module that only drafts a tenth counts"
    total, taken = progress.stages["measuring what formats cost"]
    assert total == taken > 2 * 3 * 8


def test_without_a_text_a_large_model_is_measured_by_its_weights(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "EVALUABLE", 0)
    _, plan = settled(source, quant="auto", target_bpw=6.5)
    assert plan.facts["measure"] == "relative square error of the weight"


def leaves(value: Value) -> set[str]:
    return {str(leaf.attrs["name"]) for leaf in topological_order([value]) if leaf.op == "param"}


def test_a_weight_counts_its_numbers_once(source: Checkpoint) -> None:
    weights, _ = weights_and_models(source)
    kv_b = next(each for each in weights if each.name == "layers.0.attention.kv_b_proj")
    assert kv_b.parameters == 4 * (16 + 16) * 32
    assert len(kv_b.recipes) == 3, "absorbed keys, values, and keys as the prompt's attention has them"
    assert all(leaves(recipe) == {"model.layers.0.self_attn.kv_b_proj.weight"} for recipe in kv_b.recipes)
