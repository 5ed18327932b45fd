"""quant-plan.json: what is written is read back, and what a person may get wrong is one clear error each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.errors import PlanError, PlanFormatError, PlanFormatRefusedError, PlanInvalidError, PlanNameError
from dsv3c.compiler.formats.table import FORMATS, WeightFormat
from dsv3c.compiler.quantisation import quant_plan
from dsv3c.compiler.quantisation.quant_plan import PlannedWeight, QuantPlan, Weight
from dsv3c.runtime.errors import FileUnreadable

O_PROJ, GATE_UP, HEAD = "layers.0.attention.o_proj", "layers.1.experts.gate_up", "head"


def weight(name: str, *shape: int, role: str = "linear", operation: str = "linear") -> Weight:
    recipe = ops.leaf("param", name, TensorType("f32", shape))
    parameters = math.prod(shape)
    return Weight(name, role, (recipe,), parameters, frozenset([operation]))


WEIGHTS = [
    weight("embedding", 96, 64, role="embedding", operation="take"),
    weight(O_PROJ, 64, 64),
    weight("layers.0.attention.q_b_proj", 96, 48),
    weight(GATE_UP, 9, 2, 32, 64, operation="moe_gate_up"),
    weight("layers.1.experts.down_proj", 9, 64, 32, operation="moe_down"),
    weight(HEAD, 96, 64, role="head"),
]


def no_fp8(format: WeightFormat, operation: str) -> bool:
    return not format.keeps_fp8


def read(tmp_path: Path, content: Any) -> dict[str, str]:
    path = tmp_path / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return quant_plan.read(path, WEIGHTS, no_fp8, "x86")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    names = ["bfloat16", "int8", "int5-g32", "int4-g64", "int4-g128-asym", "float32"]
    rows = tuple(
        PlannedWeight(of, name, of.nbytes(FORMATS[name], "rows16"), 0.125)
        for of, name in zip(WEIGHTS, names, strict=True)
    )
    plan = QuantPlan(rows, {"measure": "KL"})
    assert read(tmp_path, plan.text()) == plan.formats()
    assert json.loads(plan.text()) == plan.to_json()
    row = plan.to_json()["weights"][GATE_UP]
    assert row == {
        "format": "int4-g64",
        "parameters": 36864,
        "bits_per_weight": 4.25,
        "bytes": 19584,
        "sensitivity": 0.125,
    }


def test_a_pattern_names_several_and_a_name_goes_before_it(tmp_path: Path) -> None:
    found = read(
        tmp_path, {"weights": {O_PROJ: "int8", "layers.*": "int4-g32", "layers.*.experts.*": {"format": "int5-g32"}}}
    )
    assert found == {
        O_PROJ: "int8",
        "layers.0.attention.q_b_proj": "int4-g32",
        GATE_UP: "int5-g32",
        "layers.1.experts.down_proj": "int5-g32",
    }


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("{", PlanInvalidError, "is no plan of formats: "),
        ("[]", PlanInvalidError, 'it has no object "weights"'),
        ('{"weights": {"head": "int8", "head": "int4-g32"}}', PlanInvalidError, "the key 'head' is given twice"),
        ({"weights": {"head": 8}}, PlanInvalidError, "'head' is 8, neither a format nor an object that has one"),
        ({"weights": {"head": {"bits": 8}}}, PlanInvalidError, "neither a format nor"),
        ({"weights": {"head": "int7"}}, PlanFormatError, "gives head the format 'int7', which is none"),
        ({"weights": {"layers.0.attention.oproj": "int8"}}, PlanNameError, f"the nearest are {O_PROJ}, "),
        ({"weights": {"layers.9.*": "int8"}}, PlanNameError, "names 'layers.9.\\*', which is no weight of this model"),
        (
            {"weights": {O_PROJ: "fp8"}},
            PlanFormatRefusedError,
            "the format fp8, for which the target x86 has no kernels",
        ),
        ({"weights": {"embedding": "int4-g32"}}, PlanFormatRefusedError, "it has float32, float16, bfloat16 or int8"),
    ],
)
def test_each_mistake_is_told(content: Any, error: type[PlanError], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        read(tmp_path, content)


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable, match=r"none\.json"):
        quant_plan.read(tmp_path / "none.json", WEIGHTS, no_fp8, "x86")


@settings(max_examples=60)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["weights", "format", HEAD, "*", "[x"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_is_in_the_file_is_a_plan_or_one_of_its_errors(data: bytes) -> None:
    try:
        found = quant_plan.parse(data, Path("plan.json"))
    except PlanError:
        return
    assert set(found.values()) <= FORMATS.keys()


@pytest.mark.parametrize(
    ("name", "layout"),
    [("bfloat16", "rows16"), ("int8", "rows16"), ("int5-g64", "rows16"), ("int4-g32", "rows16"), ("int4-g32", "")],
)
def test_the_bits_of_a_large_weight_are_those_of_its_format(name: str, layout: str) -> None:
    large = weight("w", 256, 1024)
    assert PlannedWeight(large, name, large.nbytes(FORMATS[name], layout)).bits == pytest.approx(
        FORMATS[name].bits_per_weight(), rel=0.01
    )
