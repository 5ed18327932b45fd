"""The table of formats: names, what a row says of itself, and that targets answer for every row."""

from __future__ import annotations

import pytest

from dsv3c import targets
from dsv3c.compiler.driver import checks
from dsv3c.compiler.errors import FormatRefusedError
from dsv3c.compiler.formats.layouts import LAYOUTS
from dsv3c.compiler.formats.table import FORMATS, UnknownWeightFormat, WeightFormat, listed
from dsv3c.compiler.options import CompileOptions
from dsv3c.passes.quantise import MATRIX_OPERANDS


@pytest.mark.parametrize("name", FORMATS)
def test_name_parses_back(name: str) -> None:
    format = WeightFormat.parse(name)
    assert (format.name, str(format)) == (name, name)
    assert WeightFormat.of_type(format.type_name) is format


def test_names_that_users_know_stay() -> None:
    kinds = [f"int{bits}-{kind}{tail}" for bits in (8, 6, 5, 4, 3, 2) for tail in ("", "-asym")
             for kind in ("channel", "tensor", "g16", "g32", "g64", "g128")]  # fmt: skip
    assert {"float32", "float16", "bfloat16", "fp8", "int8", "int8-asym"} <= set(FORMATS)
    assert {WeightFormat.parse(name).name.replace("int8-asym", "int8-channel-asym") for name in kinds} == {
        "int8" if name == "int8-channel" else name for name in kinds
    }


@pytest.mark.parametrize("text", ["int4", "int7-g32", "int4-g48", "int8-g32-sym", "fp8-g64", ""])
def test_unknown_formats_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(UnknownWeightFormat, match="unknown weight format") as caught:
        WeightFormat.parse(text)
    assert listed() in str(caught.value)


def test_formats_that_differ_in_the_group_are_listed_once() -> None:
    assert listed(["int8"]) == "int8"
    assert listed(["int8", "int4-g32", "int4-g64"]) == "int8 or int4-gG with G one of 32, 64"


def test_integers_that_differ_in_bits_are_listed_once_where_all_kinds_have_the_same() -> None:
    assert listed(["int8-g32", "int4-g32", "int8-tensor", "int4-tensor"]) == (
        "intB-gG or intB-tensor with B one of 8, 4 and G one of 32"
    )
    assert listed(["int8-g32", "int4-g32", "int4-tensor"]) == "int8-gG, int4-gG or int4-tensor with G one of 32"


def test_bits_per_weight_count_scales_and_zeros() -> None:
    bits = {
        "int4-g32": 4.5,
        "int4-g32-asym": 4.75,
        "int3-g32": 3.5,
        "int2-g16": 3,
        "int2-g128-asym": 2.1875,
        "int8-tensor": 8 + 32 / 1024,
        "int8-asym": 8 + 40 / 1024,
        "int8": 8 + 32 / 1024,
        "fp8": 8.25,
        "mxfp4": 4.25,
        "nf4-g64": 4.25,
        "bfloat16": 16,
    }
    assert {name: WeightFormat.parse(name).bits_per_weight() for name in bits} == bits


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_whole(name: str) -> None:
    """What each row says fits together: codes have a rounding, packings hold the grid's bits, defaults are formats."""
    format = FORMATS[name]
    assert format.has_codes == (format.rounding is not None)
    assert not format.integer_products or format.has_codes
    assert set(format.packings) <= {*LAYOUTS, "rows"} and "rows16" in format.packings
    for layout in set(format.packings) & set(LAYOUTS):
        types = LAYOUTS[layout].component_types(format, (), 16, 256)
        data = {"f32": 32, "f16": 16, "bf16": 16, "u8": 8}
        stored = types["data"][1]
        size = data[types["data"][0]]
        for dim in stored:
            size *= dim
        assert size == format.grid.bits * 16 * 256
    for other in (format.head, format.embedding):
        assert not other or "rows" in FORMATS[other].packings


OPERATIONS = (*MATRIX_OPERANDS, "take")
LACKING = {"onnx": ("fp8", "mxfp4", "nf4", "int6", "int5", "int3")}


@pytest.mark.parametrize("target", targets.available())
def test_every_target_answers_for_every_format_and_operation(target: str) -> None:
    found = targets.get(target)
    for name, format in FORMATS.items():
        answers = {op: found.supports(format, op) for op in OPERATIONS}
        if name in ("float32", "float16", "bfloat16", "int8"):
            assert all(answers.values()), (name, answers)
        assert answers["take"] == ("rows" in format.packings)
        assert answers["linear"] != name.startswith(LACKING.get(target, ())), name


def test_a_refusal_lists_what_the_target_has_and_which_have_the_format() -> None:
    with pytest.raises(FormatRefusedError, match="the target onnx has no kernels for weights in fp8") as caught:
        checks.check_supported(CompileOptions(quant="fp8"), targets.get("onnx"))
    had = [name for name in FORMATS if not name.startswith(LACKING["onnx"])]
    assert f"it has {listed(had)}" in str(caught.value)
    assert "fp8 is there for x86, arm, vulkan, cuda, metal" in str(caught.value)


def test_no_formats_at_all_are_none() -> None:
    assert listed([]) == "none"
