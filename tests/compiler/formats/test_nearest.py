"""What is proposed for names of formats that are none."""

from __future__ import annotations

import pytest

from dsv3c.compiler.formats.nearest import nearest
from dsv3c.compiler.formats.table import FORMATS, UnknownWeightFormat, WeightFormat

MEANT = {
    "Q8_0": "int8-g32", "q8": "int8-g32", "Q5_0": "int5-g32", "Q4_0": "int4-g32", "q4": "int4-g32",
    "Q4_1": "int4-g32-asym", "Q5_1": "int5-g32-asym", "q2_k": "int2-g16-asym", "Q3_K_L": "int3-g16",
    "q4_k_m": "int4-g32-asym", "Q5_K_S": "int5-g32-asym", "Q6_K": "int6-g16", "IQ4_NL": "nf4-g32",
    "IQ4_XS": "int4-g32", "iq2_xxs": "int2-g16", "iq3_s": "int3-g32",
    "fp32": "float32", "fp16": "float16", "half": "float16", "F16": "float16", "BF16": "bfloat16", "bfp16": "bfloat16",
    "float8": "fp8", "fp8_e4m3": "fp8", "e4m3fn": "fp8", "mxfp4_moe": "mxfp4", "fp4": "mxfp4", "nvfp4": "mxfp4",
    "INT4": "int4-g32", "4bit": "int4-g32", "4-bits": "int4-g32", "w4a16": "int4-g32", "w8a8": "int8", "uint8": "int8",
    "int4g32": "int4-g32", "int4_g64": "int4-g64", "INT4-G64-ASYM": "int4-g64-asym", "blfoat16": "bfloat16",
    "nf4_g64": "nf4-g64", "int8-chanel": "int8-channel",
    "int7": "int8", "": None, "gibberish": None,
}  # fmt: skip


@pytest.mark.parametrize("text", MEANT)
def test_names_of_others_and_misspellings_have_a_nearest_format(text: str) -> None:
    assert nearest(text, (*FORMATS, "int8-channel")) == MEANT[text]


def test_a_refusal_names_the_nearest_and_where_all_are() -> None:
    says = r"format 'q4_k_m'\n  hint: int4-g32-asym is the nearest; use float32, .*; docs/use/formats.md"
    with pytest.raises(UnknownWeightFormat, match=says):
        WeightFormat.parse("q4_k_m")
