"""plan.json: every index, offset and bound is checked, since kernels trust them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.plan import Plan, parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from tests.runtime import toy

TENSORS = {
    "scale": Tensor("float32", (1,), 128, 4),
    "odd": Tensor("float32", (1,), 132, 4),
    "bits": Tensor("uint16", (2, 3), 192, 12),
}
ARENA, WEIGHT = 8, 10


def parse(content: Any) -> Plan:
    return parse_plan(content, TENSORS, toy.VOCAB)


def test_plan_of_the_toy() -> None:
    plan = parse(toy.plan_content())
    assert plan.bounds.T == 8
    assert plan.inputs["page_table"] == 3
    assert plan.entries["prefill"].min_tokens == 6
    assert plan.entries["mtp"].max_tokens == 8
    assert plan.slot_bytes == 2 * toy.LATENT * 4


def test_bfloat16_may_be_stored_as_uint16() -> None:
    content = toy.plan_content()
    content["buffers"][WEIGHT] = {"name": "w", "kind": "weight", "dtype": "bfloat16", "size": 6, "tensor": "bits"}
    assert parse(content).buffers[WEIGHT].bytes == 12


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["version"], "1"),
        (["version"], 0),
        (["bounds"], []),
        (["bounds", "T"], 0),
        (["bounds", "T"], -1),
        (["bounds", "T"], 2**60),
        (["bounds", "S"], 1.0),
        (["bounds", "P"], True),
        (["bounds", "R"], None),
        (["page_size"], 0),
        (["page_size"], 2**40),
        (["arena_bytes"], 64),
        (["arena_bytes"], 2**63),
        (["latent_dim"], 0),
        (["cache_dtype"], "float8"),
        (["n_caches"], 1),
        (["n_caches"], 3),
        (["buffers"], {}),
        (["buffers", 0], []),
        (["buffers", 0, "kind"], "gpu"),
        (["buffers", 0, "dtype"], "int31"),
        (["buffers", 0, "dtype"], "int8"),
        (["buffers", 0, "size"], 7),
        (["buffers", 0, "size"], 2**50),
        (["buffers", 0, "name"], "positions"),
        (["buffers", 0, "name"], ""),
        (["buffers", 5, "size"], 8),
        (["buffers", 6, "name"], "cache.1"),
        (["buffers", 6, "name"], "cache.x"),
        (["buffers", ARENA, "offset"], 4),
        (["buffers", ARENA, "offset"], -64),
        (["buffers", ARENA, "offset"], 2**40),
        (["buffers", ARENA, "size"], 2**40),
        (["buffers", ARENA, "dtype"], "int32"),
        (["buffers", WEIGHT, "tensor"], "other"),
        (["buffers", WEIGHT, "tensor"], "odd"),
        (["buffers", WEIGHT, "dtype"], "float16"),
        (["buffers", WEIGHT, "size"], 2),
        (["buffers", 11, "size"], 2**40),
        (["entries"], []),
        (["entries"], {}),
        (["entries", "decode", "calls"], {}),
        (["entries", "decode", "calls", 0], ["f"]),
        (["entries", "decode", "calls", 0], [1, []]),
        (["entries", "decode", "calls", 0], ["not a name", []]),
        (["entries", "decode", "calls", 0], ["f", [12]]),
        (["entries", "decode", "calls", 0], ["f", [-1]]),
        (["entries", "decode", "calls", 0], ["f", [True]]),
        (["entries", "decode", "calls", 0], ["f", 0]),
        (["entries", "decode", "max_tokens"], 9),
        (["entries", "decode", "max_tokens"], 0),
        (["entries", "prefill", "min_tokens"], 0),
        (["entries", "decode", "outputs"], []),
        (["entries", "decode", "outputs"], {}),
        (["entries", "decode", "outputs", "logits"], 0),
        (["entries", "decode", "outputs", "logits"], 99),
        (["entries", "decode", "outputs", "logits"], 9),
        (["entries", "mtp", "inputs", "hidden"], 0),
        (["entries", "mtp", "inputs", "hidden"], 8),
        (["entries", "mtp", "inputs"], []),
    ],
    ids=str,
)
def test_plan_malformed(keys: list[Any], value: Any) -> None:
    content = copy.deepcopy(toy.plan_content())
    at = content
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    with pytest.raises(errors.PlanInvalid):
        parse(content)


@pytest.mark.parametrize("content", [None, [], 1, "plan", {}])
def test_plan_is_no_plan(content: Any) -> None:
    with pytest.raises(errors.PlanInvalid):
        parse(content)


@pytest.mark.parametrize("name", ["tokens", "control", "page_table"])
def test_input_missing(name: str) -> None:
    content = toy.plan_content()
    buffer = next(buffer for buffer in content["buffers"] if buffer["name"] == name)
    buffer["name"] = "another"
    with pytest.raises(errors.PlanInvalid, match=f"{name!r} is missing"):
        parse(content)


def test_vocabulary_of_the_manifest_does_not_fit() -> None:
    with pytest.raises(errors.PlanInvalid, match="logits"):
        parse_plan(toy.plan_content(), TENSORS, toy.VOCAB + 1)
