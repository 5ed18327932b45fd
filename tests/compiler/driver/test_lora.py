"""What is compiled with adapters is what a checkpoint gives whose weights were merged beforehand, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.lora.errors import AdapterTargetError
from dsv3c.compiler.cli.params import lora_option
from dsv3c.compiler.driver import journal, measuring, pipeline
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.driver.sweep import Chosen, Sweep
from dsv3c.compiler.errors import SweepDiffersError
from dsv3c.compiler.options import CompileOptions, Lora
from dsv3c.runtime.measure.windows import Settings
from tests.adapters import ATTENTION, embedding_factors, factors, merged, write_adapter
from tests.checkpoints import random_tensors, tiny_config, write_checkpoint, write_safetensors, write_tokenizer
from tests.compiler.driver.fake_target import FakeTarget
from tests.conformance import runs

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MODULES = (
    *(f"model.layers.1.{part}" for part in ATTENTION),
    *(f"model.layers.0.mlp.{part}" for part in PROJECTIONS),
    *(f"model.layers.1.mlp.experts.{expert}.{part}" for expert in range(8) for part in PROJECTIONS),
    *(f"model.layers.1.mlp.shared_experts.{part}" for part in PROJECTIONS),
    "lm_head",
)
DENSE = {"n_routed_experts": ..., "first_k_dense_replace": 2}


class Case:
    """A checkpoint, an adapter of everything, and a checkpoint with its weights merged."""

    def __init__(self, folder: Path, dtype: str = "float32", **config: Any) -> None:
        self.base, self.merged, self.adapter = folder / "tiny", folder / "merged" / "tiny", folder / "tuned"
        settings = tiny_config(num_hidden_layers=2, **config)
        stored = write_checkpoint(self.base, settings, dtype=dtype)
        write_tokenizer(self.base, 96)
        weights = random_tensors(settings) if dtype == "float32" else {}
        modules = [module for module in MODULES if f"{module}.weight" in stored]
        self.factors = factors(modules, stored) | embedding_factors("model.embed_tokens", stored)
        write_adapter(self.adapter, self.factors)
        if weights:
            write_checkpoint(self.merged, settings)
            write_safetensors(self.merged / "model.safetensors", merged(weights, self.factors, 2.0))
            write_tokenizer(self.merged, 96)

    @property
    def lora(self) -> tuple[Lora, ...]:
        return (Lora(self.adapter),)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("sparse"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("dense"), mlp_layer_types=["dense", "dense"], **DENSE)


@pytest.fixture(params=["sparse", "dense"])
def case(request: pytest.FixtureRequest) -> Case:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found


def test_logits_equal_those_of_weights_that_were_merged_before(case: Case) -> None:
    prompts, schedule = [np.arange(2, 14, dtype=np.int32)], [[(0, 8)], *[[(0, 1)]] * 4]

    def logits(checkpoint: Checkpoint) -> list[np.ndarray]:
        return runs.run(runs.GraphStepper(runs.traced(checkpoint), checkpoint.read), prompts, schedule)

    found, expected = logits(Checkpoint.open(case.base, case.lora)), logits(Checkpoint.open(case.merged))
    plain = logits(Checkpoint.open(case.base))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, expected, strict=True))
    assert runs.worst(found, plain) > 0.1


@pytest.mark.parametrize(
    ("which", "options"),
    [
        ("sparse", {"quant": "float32"}),
        ("dense", {"quant": "int4-g32", "method": "search"}),
        ("dense", {"quant": "int4-g32", "method": "gptq", "calibration": True}),
        pytest.param("dense", {"quant": "auto", "target_bpw": 6.0}, marks=pytest.mark.thorough),
        pytest.param(
            "sparse", {"quant": "int4-g32", "method": "gptq", "calibration": True}, marks=pytest.mark.thorough
        ),
        pytest.param("sparse", {"quant": "auto", "target_bpw": 6.0, "calibration": True}, marks=pytest.mark.thorough),
    ],
)
def test_weights_are_those_of_a_checkpoint_merged_before(
    which: str,
    options: dict[str, Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    text: Path,
    fake_target: FakeTarget,
) -> None:
    """Whatever looks at weights looks at merged ones: rounding, calibration, the choice of formats."""
    case = request.getfixturevalue(which)
    if options.get("calibration"):
        text.write_text(text.read_text() * 4)
        options = {**options, "calibration": text}
    given = CompileOptions(max_tokens=16, **options)
    made = pipeline.compile_checkpoint(case.base, tmp_path / "made", replace(given, lora=case.lora))
    expected = pipeline.compile_checkpoint(case.merged, tmp_path / "expected", given)
    for name in ("weights.safetensors", "plan.json"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert made.manifest["quantization"] == expected.manifest["quantization"]


def test_the_manifest_names_adapters_with_their_hashes(
    sparse: Case, tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = (Lora(sparse.adapter, 0.5),)
    report = pipeline.compile_checkpoint(sparse.base, None, CompileOptions(lora=lora))
    assert report.out == Path("artifacts/tiny+tuned-int8-x86")
    source = json.loads((report.out / "manifest.json").read_text())["source"]
    assert source["adapters"] == [{"name": "tuned", "scale": 0.5}]
    assert source["files"].keys() >= {"model.safetensors", "lora.1/tuned=0.5/adapter_model.safetensors"}
    assert report.manifest["options"]["lora"] == ["tuned=0.5"]
    assert any(note.startswith("the adapter tuned") for note in report.notes)


def run_of(case: Case, *lora: Lora) -> journal.Run:
    return journal.Run.of(Checkpoint.open(case.base, lora), CompileOptions(lora=lora), b"")


def test_an_interrupted_run_was_of_its_adapters(sparse: Case, tmp_path: Path) -> None:
    weights = random_tensors(tiny_config(num_hidden_layers=2))
    other = Lora(write_adapter(tmp_path / "tuned", factors(["lm_head"], weights)))
    (tuned,) = sparse.lora
    assert run_of(sparse, tuned) == run_of(sparse, tuned)
    said = run_of(sparse).differences(run_of(sparse, tuned))
    assert said.startswith("lora ['tuned'], now []; files of the checkpoint that are others now: 'lora.1/tuned/")
    assert run_of(sparse, replace(tuned, scale=2)).differences(run_of(sparse, tuned)).startswith("lora ['tuned'], now")
    assert run_of(sparse, other).differences(run_of(sparse, tuned)).startswith("files of the checkpoint")
    assert run_of(sparse, other, tuned) != run_of(sparse, tuned, other)


def test_a_plan_is_of_the_merged_model(tmp_path: Path) -> None:
    """The head of this one is an own tensor only with the adapter."""
    settings = tiny_config("youtu", num_hidden_layers=1)
    stored = write_checkpoint(tmp_path / "base", settings)
    lora = (Lora(write_adapter(tmp_path / "tuned", embedding_factors("model.embed_tokens", stored))),)
    plain = plan_checkpoint(tmp_path / "base", CompileOptions(quant="float32"))
    found = plan_checkpoint(tmp_path / "base", CompileOptions(quant="float32", lora=lora))
    assert plain.parts["embedding"].weights == found.parts["head"].weights == 96 * 64
    assert "head" not in plain.parts
    assert any("no longer one" in note for note in found.notes)


def test_codes_of_merged_tensors_are_not_kept(
    tmp_path: Path, fake_target: FakeTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, dtype="float8_e4m3")
    monkeypatch.setattr(fake_target, "integer_activations", False)  # which then keeps fp8 unasked
    options = CompileOptions(kept=None, cache_dtype="f32")
    plain = pipeline.settled(options, Checkpoint.open(case.base), fake_target).kept
    found = pipeline.settled(options, Checkpoint.open(case.base, case.lora), fake_target).kept
    assert plain is not None and found is not None and plain.keys() > found.keys()
    assert {name for name in plain if name.startswith("model.layers.1.")} & found.keys() == set()
    report = pipeline.compile_checkpoint(case.base, tmp_path / "out", replace(options, lora=case.lora))
    assert any("are in codes and change with the adapters" in note for note in report.notes)


def test_an_adapter_of_another_model_leaves_nothing(sparse: Case, tmp_path: Path, fake_target: FakeTarget) -> None:
    weights = random_tensors(tiny_config())
    lora = (Lora(write_adapter(tmp_path / "tuned", factors(["model.layers.2.self_attn.o_proj"], weights))),)
    with pytest.raises(AdapterTargetError, match="adapter of another model"):
        pipeline.compile_checkpoint(sparse.base, tmp_path / "out", CompileOptions(lora=lora))
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_a_sweep_and_its_reference_have_the_adapters(sparse: Case, tmp_path: Path, text: Path) -> None:
    def sweep(*lora: Lora) -> Sweep:
        return Sweep.of(sparse.base, [text], Settings(), Chosen(("int8",), lora=lora))

    found = sweep(*sparse.lora)
    assert {options.lora for options in found.options.values()} == {sparse.lora}
    table = found.resumed(None)
    table.write(tmp_path / "table.json")
    found.resumed(tmp_path / "table.json")
    with pytest.raises(SweepDiffersError, match="another checkpoint"):
        sweep().resumed(tmp_path / "table.json")


@pytest.mark.parametrize("own", [True, False])
def test_the_checkpoint_itself_is_compared_with_its_adapters_in_it(own: bool, sparse: Case, text: Path) -> None:
    against, compiled = sparse.base if own else sparse.merged, list[tuple[Lora, ...]]()

    def compile(path: Path, out: Path | None, options: CompileOptions, progress: object) -> None:
        assert path == against
        compiled.append(options.lora)

    options = CompileOptions(lora=sparse.lora, measure=text, measure_against=against)
    with measuring.reference(against, compile, None, measuring.adapters_of(against, sparse.base, options)):
        assert compiled == [sparse.lora if own else ()]


@pytest.mark.parametrize(
    ("text", "name", "scale"), [("tuned", "tuned", 1.0), ("tuned=0.5", "tuned", 0.5), ("odd=0.5", "odd=0.5", 1.0)]
)
def test_the_option_takes_a_scale(
    text: str, name: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd=0.5").mkdir()
    monkeypatch.chdir(tmp_path)
    found: list[Any] = []
    command = click.command()(lora_option(lambda lora: found.extend(lora)))
    command.main(["--lora", text], standalone_mode=False)
    assert found == [Lora(Path(name), scale)]
    with pytest.raises(click.BadParameter):
        command.main(["--lora", "tuned=nan"], standalone_mode=False)
