"""What an artifact has of a checkpoint that is quantised: its codes, scales and zeros, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.driver import journal, kept, lowering, pipeline, weights
from dsv3c.compiler.formats import rows16
from dsv3c.compiler.formats.keeping import Loss
from dsv3c.compiler.formats.quant import QTensor
from dsv3c.compiler.formats.table import FORMATS, WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.passes.quantise import turned
from tests import quantised
from tests.conformance import runs
from tests.quantised import INTEGERS, WIDENED, Foreign, Written

Array = np.ndarray
LAYERS = {"num_hidden_layers": 2}
DECODE = CompileOptions(max_tokens=16, kept=None)  # no second entry


class Made:
    """The weights of a checkpoint as they are written for a target."""

    def __init__(self, folder: Path, how: Foreign | Written, options: CompileOptions) -> None:
        self.written = how if isinstance(how, Written) else quantised.write(folder, how, **LAYERS)
        self.source, chosen = Checkpoint.open(folder), targets.get("x86")
        self.options = pipeline.settled(options, self.source, chosen)
        lowered = lowering.lower(self.source.config, self.source.shapes, self.options, chosen)
        self.recipes = chosen.plan(lowered.entries, lowered.bounds).recipes
        file, path = weights.lay_out(self.recipes), folder / "weights"
        self.losses = weights.write(file, path, kept.Reader(self.source, self.recipes), lambda n: None)
        self.file = SafetensorsFile(path)

    @property
    def notes(self) -> tuple[str, ...]:
        return kept.notes(self.source, self.recipes)

    def formats_of(self, part: str) -> set[str]:
        """Of recipes that have a tensor called so in it."""
        return {recipe.type.dtype for recipe in self.recipes.values() if part in " ".join(tensors_of(recipe))}

    def stored(self, name: str) -> QTensor:
        recipe = self.recipes[name]
        format = WeightFormat.of_type(recipe.type.dtype)
        *leading, n, k = map(int, recipe.shape)
        parts = {
            role: self.file.array(name if role == "data" else f"{name}.{role}").reshape(shape)
            for role, (_, shape) in rows16.component_types(format, tuple(leading), n, k).items()
        }
        found = rows16.unpack(parts, format, n, k)
        assert isinstance(found, QTensor)
        return found

    def expected(self, recipe: Value, part: str) -> Array:
        """Of each element its code less zero, its scale or its zero, or of MXFP4 its code or exponent, moved as the
        recipe moves numbers."""
        weight = next(value for value in topological_order([recipe]) if value.op == "quantize").inputs[0]
        return np.asarray(ops.evaluate([weight], lambda leaf: stacked(self.written, str(leaf.attrs["name"]), part))[0])


def tensors_of(recipe: Value) -> list[str]:
    return [str(leaf.attrs["name"]) for leaf in topological_order([recipe]) if leaf.op == "param"]


def stacked(written: Written, name: str, part: str) -> Array:
    if "*" in name:
        return np.stack([stacked(written, name.replace("*", str(expert)), part) for expert in range(8)])
    if name not in written.codes:
        return np.full(written.values[name].shape, np.nan, np.float32)
    codes = written.codes[name]
    if codes.zero is None:
        return codes.codes.astype(np.float32) if part == "codes" else codes.scale[:, codes.group].astype(np.float32)
    zero = codes.zero[:, codes.group].astype(np.float32)
    return {"offset": codes.codes - zero, "scale": codes.scale[:, codes.group].astype(np.float32), "zero": zero}[part]


@pytest.mark.parametrize("format", sorted({"mxfp4"} & set(FORMATS)))
@pytest.mark.parametrize("stored", ["blocks of fused experts", "packed"])
def test_an_artifact_has_the_codes_and_exponents_of_mxfp4(stored: str, format: str, tmp_path: Path) -> None:
    if stored == "packed":
        quantization = {**quantised.group_of(4, 32, type="float"), "format": "mxfp4-pack-quantized"}
        written = quantised.write(tmp_path, Foreign(quantization, quantised.e2m1, quantised.mxfp4_packed), **LAYERS)
    else:
        written = quantised.write_fused(tmp_path, {"quant_method": "mxfp4"}, **LAYERS)
    made = Made(tmp_path, written, DECODE)
    count = 0
    for name in in_own_format(made, format):
        found, recipe = made.stored(name), made.recipes[name]
        codes, exponents = made.expected(recipe, "codes"), made.expected(recipe, "exponents")
        given = ~np.isnan(codes)
        np.testing.assert_array_equal(found.codes[..., : found.k][given], codes[given], err_msg=name)
        spread = np.repeat(found.scale.view(np.uint8), 32, axis=-1)[..., : found.k]
        np.testing.assert_array_equal(spread[given], exponents[given], err_msg=name)
        count += 1
    assert count >= 2
    assert made.notes[0].startswith(f"codes are kept, in {format}: ")


def in_own_format(made: Made, format: str) -> list[str]:
    return [name for name, recipe in made.recipes.items() if recipe.type.dtype == format and not turned(recipe)]


@pytest.mark.parametrize("case", INTEGERS)
def test_an_artifact_has_the_codes_scales_and_zeros_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    foreign = INTEGERS[case]
    made = Made(tmp_path, foreign, DECODE)
    row = WeightFormat.parse(foreign.format)
    count = 0
    for name in in_own_format(made, foreign.format):
        found, recipe = made.stored(name), made.recipes[name]
        offset, scale = made.expected(recipe, "offset"), made.expected(recipe, "scale")
        given = ~np.isnan(offset)  # others are float in the checkpoint
        if not given.any():
            continue
        count += 1
        size = found.codes.shape[-1] // found.scale.shape[-1]
        zero = row.zero_point if found.zero is None else np.repeat(found.zero, size, axis=-1)
        offsets = (found.codes.astype(np.float32) - zero)[..., : found.k]
        np.testing.assert_array_equal(offsets[given], offset[given], err_msg=name)
        scales = np.repeat(found.scale.astype(np.float32), size, axis=-1)[..., : found.k]
        np.testing.assert_array_equal(scales[given], scale[given], err_msg=name)
        if found.zero is not None:
            np.testing.assert_array_equal(zero[..., : found.k][given], made.expected(recipe, "zero")[given])
    assert count >= (2 if foreign.experts_alone else 8)
    assert not [name for name in made.losses if not turned(made.recipes[name])]
    assert made.notes[0].startswith(f"codes are kept, in {foreign.format}: ")


@pytest.mark.parametrize("case", WIDENED)
def test_codes_are_kept_in_a_wider_format_where_none_is_their_own(case: str, tmp_path: Path) -> None:
    """They decode to the same numbers, without a second rounding."""
    made = Made(tmp_path, WIDENED[case], DECODE)
    formats = set((made.options.kept or {}).values())
    assert len(formats) == 1
    for name in in_own_format(made, formats.pop()):
        found, recipe = made.stored(name), made.recipes[name]
        values = made.expected(recipe, "offset") * made.expected(recipe, "scale")
        given = ~np.isnan(values)
        np.testing.assert_array_equal(found.dequantize()[given], values[given], err_msg=name)


def test_what_is_float_in_the_checkpoint_takes_the_chosen_format(tmp_path: Path) -> None:
    made = Made(tmp_path, INTEGERS["packed int4, experts alone"], DECODE)
    assert made.formats_of("mlp.experts") == {"int4-g32"}
    assert made.formats_of("o_proj") == {"int8"}


def test_the_key_projection_that_is_absorbed_is_rounded_again_and_said(tmp_path: Path) -> None:
    """Its groups lie across when it is transposed."""
    made = Made(tmp_path, INTEGERS["gptq"], CompileOptions(kept=None))
    across = [name for name, recipe in made.recipes.items() if turned(recipe)]
    assert across and {made.recipes[name].type.dtype for name in across} == {"int8"}
    (again,) = [note for note in made.notes if "second time" in note]
    assert again.startswith("rounded a second time, to int8: 2 tensors of the checkpoint (int4 in groups of 32): ")
    assert "kv_b_proj.weight" in again


def test_a_format_that_is_asked_for_is_rounded_to_and_said(tmp_path: Path) -> None:
    made = Made(tmp_path, INTEGERS["gptq"], CompileOptions(quant="int8", max_tokens=16))
    assert made.options.kept == {}
    assert [note for note in made.notes if "rounded a second time, to int8" in note]
    assert not [note for note in made.notes if "kept" in note]


def test_a_format_that_is_asked_for_and_holds_the_codes_keeps_them(tmp_path: Path) -> None:
    made = Made(tmp_path, INTEGERS["gptq"], CompileOptions(quant="int8-g32", max_tokens=16))
    assert made.notes[0].startswith("codes are kept, in int8-g32: ")
    for name in in_own_format(made, "int8-g32"):
        found, recipe = made.stored(name), made.recipes[name]
        values = made.expected(recipe, "offset") * made.expected(recipe, "scale")
        np.testing.assert_array_equal(found.dequantize(), values, err_msg=name)


def test_many_formats_that_round_again_are_one_note(tmp_path: Path) -> None:
    chosen = {"layers.0.attention.o_proj": "int2-g16", "layers.1.attention.o_proj": "nf4-g32"}
    options = replace(DECODE, kept={}, quant="int8", formats={**chosen, "layers.0.mlp.down_proj": "int3-g32"})
    (note,) = Made(tmp_path, lossy(), options).notes
    assert note.startswith("rounded a second time, to 4 formats: ")


def lossy() -> Foreign:
    """A symmetric checkpoint of which one group has another zero, and one scale that float16 rounds."""

    def rounded(w: Array) -> quantised.Codes:
        found = quantised.integers(w, 4, 32, dtype=np.float32)
        return quantised.Codes(found.codes, found.scale.astype(np.float16).astype(np.float32), found.zero, found.group)

    def packed(name: str, w: quantised.Codes) -> dict[str, Array]:
        if name == "model.layers.1.self_attn.o_proj":
            assert w.zero is not None
            w.zero[3, 0], w.scale[5, 1] = 15, np.float32(0.1)
            w.codes[3] = 0
        return quantised.gptq(name, w, 4)

    return Foreign(quantised.gptq_config(4, 32), rounded, packed)


def test_rows_that_do_not_fit_are_counted_and_said(tmp_path: Path) -> None:
    made = Made(tmp_path, lossy(), DECODE)
    (name,) = [name for name in made.losses if not turned(made.recipes[name])]
    assert (made.losses[name].rows, made.losses[name].scales) == (1, 1)
    rows, scales = kept.loss_notes(made.recipes, made.losses)
    assert rows == "rounded a second time, as they do not fit: 1 row of 'model.layers.1.self_attn.o_proj.weight'"
    assert scales == "not exact in float16: 1 scale of 'model.layers.1.self_attn.o_proj.weight'"


def test_a_run_that_goes_on_says_what_the_killed_one_had_lost(tmp_path: Path) -> None:
    made = Made(tmp_path / "model", lossy(), DECODE)
    file, read = weights.lay_out(made.recipes), kept.Reader(made.source, made.recipes)
    run = journal.Run.of(made.source, made.options, file.header)

    def write() -> tuple[int, dict[str, Loss]]:
        path = tmp_path / "weights"
        with (
            journal.opened(tmp_path / "journal", run, path) as found,
            weights.writing(file, path, read, lambda n: None, found) as writer,
        ):
            before = found.nbytes
            writer.write_rest()
        return before, writer.losses

    assert write() == (0, made.losses)
    assert write() == (file.tensor_bytes, made.losses)


def test_groups_out_of_order_are_rounded_again_and_said(tmp_path: Path) -> None:
    order = np.random.default_rng(1)
    foreign = Foreign(
        quantised.gptq_config(4, 32, desc_act=True),
        lambda w: quantised.integers(w, 4, 32, order=order.permutation(w.shape[1])),
        lambda name, w: quantised.gptq(name, w, 4),
    )
    made = Made(tmp_path, foreign, DECODE)
    (again,) = [note for note in made.notes if "second time" in note]
    assert "int4 in scattered groups" in again


def test_a_target_without_the_format_takes_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised.write(tmp_path, INTEGERS["gptq"], **LAYERS)
    source = Checkpoint.open(tmp_path)
    settled = kept.settle(DECODE, source, lambda format: format.name in ("int8", "int8-g32"))
    assert set((settled.kept or {}).values()) == {"int8-g32"}  # holds the codes too
    assert kept.settle(DECODE, source, lambda format: format.name == "int8").kept == {}


def test_the_output_is_named_by_the_format_that_is_kept() -> None:
    options = CompileOptions(kept={"a": "int4-g32", "b": "int4-g32", "c": "int8-g32"})
    assert pipeline.default_output(Path("/m/model"), options).name == "model-int4-g32-x86"
    assert kept.formats(options) == ["int4-g32", "int8-g32", "int8"]


PROMPTS = [np.arange(2, 22, dtype=np.int32), np.arange(40, 50, dtype=np.int32)]
SCHEDULE = [[(0, 12), (1, 4)], *[[(0, 1), (1, 1)]] * 4]


def exact_logits(folder: Path, written: Written) -> list[Any]:
    """Of the model as traced, with the numbers that the format's rules give."""
    exact = runs.GraphStepper(runs.traced(Checkpoint.open(folder)), lambda name: values_of(written, name))
    return runs.run(exact, PROMPTS, SCHEDULE)


@pytest.mark.parametrize("case", ["packed int4", "gptq of 3 bits"])
def test_the_graph_computes_with_the_weights_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    written = quantised.write(tmp_path, (INTEGERS | WIDENED)[case], **LAYERS)
    source, target = Checkpoint.open(tmp_path), runs.NumpyTarget()
    options = pipeline.settled(DECODE, source, target)
    sequence = lowering.passes("absorbed", options, target, lowering.step_bounds(source.config, options))
    graph = lowering.run_passes(runs.traced(source), sequence, options)[0]
    found = runs.run(runs.GraphStepper(graph, source.coded), PROMPTS, SCHEDULE)
    assert runs.worst(found, exact_logits(tmp_path, written)) < 0.025  # activations are rounded to int8


@pytest.mark.thorough
@pytest.mark.usefixtures("kernels_for_this_cpu_alone")
@pytest.mark.parametrize("case", ["packed int4", "gptq", "awq", "int8"])
def test_a_compiled_model_computes_with_the_weights_of_the_checkpoint(case: str, tmp_path: Path) -> None:
    written = quantised.write(tmp_path / "model", INTEGERS[case], **LAYERS)
    options = replace(DECODE, cache_dtype="f32")
    report = pipeline.compile_checkpoint(tmp_path / "model", tmp_path / "out", options)
    assert any("codes are kept" in note for note in report.notes)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["quantization"]["weights"].split(" + ")[0] == INTEGERS[case].format
    found = runs.run(runs.ArtifactStepper(runs.runtime.load(tmp_path / "out")), PROMPTS, SCHEDULE)
    assert runs.worst(found, exact_logits(tmp_path / "model", written)) < 0.025


def values_of(written: Written, name: str) -> Any:
    if "*" not in name:
        return written.values[name]
    return np.stack([written.values[name.replace("*", str(expert))] for expert in range(8)])


def test_a_repeated_lowering_needs_no_checkpoint(tmp_path: Path) -> None:
    """The formats that keep codes are options like others: `tune` makes an artifact's plan from them again."""
    made = Made(tmp_path, INTEGERS["awq"], DECODE)
    stored = json.loads(json.dumps(made.options.to_dict()))
    again = CompileOptions(**{**stored, "emit": ()})
    target: Target = targets.get("x86")
    lowered = lowering.lower(made.source.config, made.source.shapes, again, target)
    recipes = target.plan(lowered.entries, lowered.bounds).recipes
    assert {name: str(recipe.type) for name, recipe in recipes.items()} == {
        name: str(recipe.type) for name, recipe in made.recipes.items()
    }
