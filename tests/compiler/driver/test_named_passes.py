"""Passes as text: what is spelled is read back as the same pass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from dsv3c import targets
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.driver.named_passes import KNOWN, parse, spelled
from dsv3c.compiler.errors import BadPassError, UnknownPassError
from dsv3c.compiler.formats.table import UnknownWeightFormat
from dsv3c.compiler.options import CompileOptions

BOUNDS = {"T": 33, "R": 4, "S": 3, "P": 7}
X86: Target = targets.get("x86")


def shown(item: Any) -> dict[str, Any]:
    """The fields that can be compared: a function is the target's."""
    values = {field.name: getattr(item, field.name) for field in fields(item)}
    return {name: value for name, value in values.items() if not callable(value)}


@pytest.mark.parametrize("form", ["absorbed", "materialized"])
@pytest.mark.parametrize("name", targets.TABLE)
def test_every_pass_of_every_target_is_read_back(name: str, form: str) -> None:
    target: Target = targets.get(name)
    options = CompileOptions(target=name, quant="int4-g32-asym", head_quant="bfloat16", embed_quant="int8")
    for item in lowering.passes(form, options, target, BOUNDS):
        again = parse(spelled(item), target)
        assert (type(again), shown(again)) == (type(item), shown(item))


def test_every_pass_of_the_pipeline_has_a_name_here() -> None:
    passes = lowering.passes("absorbed", CompileOptions(), X86, BOUNDS, max_context=8)
    assert list(dict.fromkeys(item.name for item in passes)) == [*KNOWN]


def test_what_is_not_told_is_as_a_compilation_has_it() -> None:
    bounds = {"T": 512, "R": 64, "S": 8, "P": 128}
    for item in lowering.passes("absorbed", CompileOptions(), X86, bounds):
        assert shown(parse(item.name, X86)) == shown(item)
    assert spelled(parse("quantise:weights=float32", X86)) == (
        "quantise:weights=float32,head=float32,embedding=float32"
    )
    assert spelled(parse("pack", targets.get("metal"))) == "pack:layout=rows16,integer_activations=false"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("simplify:a=b", "'simplify:a=b' is no pass: 'a=b' is none of its options: none"),
        ("fuse-mla:form", "'form' is none of its options: form=…"),
        ("fuse-mla:form=", "'form=' is none of its options: form=…"),
        ("fuse-mla:form=naive", "'naive' is none of absorbed, materialized"),
        ("pack:layout=rows17", "'rows17' is none of rows16"),
        ("pack:integer_activations=1", "'1' is none of true, false"),
        ("plan-memory:T=0", "'0' is no number from 1 to 65536"),
        ("plan-memory:T=65537", "'65537' is no number from 1 to"),
        ("plan-memory:T=" + "9" * 5000, "is no number from 1 to"),
        ("plan-memory:N=4", "'N=4' is none of its options: T=…, R=…, S=…, P=…"),
    ],
)
def test_a_wrong_option_is_answered_with_what_is_right(text: str, message: str) -> None:
    with pytest.raises(BadPassError) as caught:
        parse(text, X86)
    assert message in str(caught.value)


def test_an_unknown_pass_and_an_unknown_format_are_their_own_errors() -> None:
    with pytest.raises(UnknownPassError, match="the passes are simplify, fuse-rms-norm, "):
        parse("fuse-all", X86)
    with pytest.raises(UnknownWeightFormat, match="int3"):
        parse("quantise:weights=int3", X86)
