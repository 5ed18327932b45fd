"""plan.json: every index, offset and bound is checked, since kernels trust them."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from tests.runtime import toy

TENSORS = {
    "scale": Tensor("float32", (1,), 128, 4),
    "odd": Tensor("float32", (1,), 132, 4),
    "bits": Tensor("uint16", (2, 3), 192, 12),
}
ARENA, WEIGHT = 8, 10
CACHE, CODES = 6, 7


def parse(content: Any) -> Plan:
    return parse_plan(content, TENSORS, toy.VOCAB)


def test_plan_of_the_toy() -> None:
    plan = parse(toy.plan_content())
    assert plan.bounds.T == 8
    assert plan.inputs["page_table"] == 3
    assert plan.entries["prefill"].min_tokens == 6
    assert plan.entries["mtp"].max_tokens == 8
    assert plan.slot_bytes == toy.LAYERS * (toy.LATENT * 4 + toy.CODES)


def test_each_cache_has_its_own_width_and_type() -> None:
    found = [(cache.name, cache.layer, cache.dtype, cache.width, cache.slot_bytes) for cache in plan().caches]
    assert found == [
        ("cache.0", 0, "float32", 4, 16),
        ("cache.0.codes", 0, "int8", 3, 3),
        ("cache.1", 1, "float32", 4, 16),
        ("cache.1.codes", 1, "int8", 3, 3),
    ]


def plan() -> Plan:
    return parse(toy.plan_content())


def test_caches_of_version_1_have_the_width_and_type_of_their_plan() -> None:
    old = parse(toy.plan_of_version_1())
    assert [(cache.name, cache.dtype, cache.width) for cache in old.caches] == [
        (f"cache.{layer}", "float16", toy.LATENT) for layer in range(4)
    ]
    assert old.slot_bytes == 4 * 2 * toy.LATENT


def test_a_plan_of_version_1_is_not_believed_what_only_later_ones_state() -> None:
    content = toy.plan_of_version_1()
    content["buffers"][CACHE] |= {"width": 2**19, "dtype": "int8"}
    assert parse(content).caches[0].slot_bytes == 2 * toy.LATENT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latent_dim", 0),
        ("latent_dim", -1),
        ("latent_dim", 2**21),
        ("cache_dtype", "int8"),
        ("cache_dtype", "float8"),
        ("n_caches", 1),
        ("n_caches", 5),
        ("n_caches", 0),
    ],
)
def test_what_version_1_states_of_caches_is_checked(key: str, value: object) -> None:
    with pytest.raises(errors.PlanInvalid):
        parse(toy.plan_of_version_1() | {key: value})
    left_out = toy.plan_of_version_1()
    del left_out[key]
    with pytest.raises(errors.PlanInvalid, match=f"{key}: is missing"):
        parse(left_out)


@pytest.mark.parametrize("key", ["width", "dtype"])
def test_a_cache_without_width_or_type_is_refused(key: str) -> None:
    content = toy.plan_content()
    del content["buffers"][CODES][key]
    with pytest.raises(errors.PlanInvalid, match=rf"buffers\[7\]\.{key}: is missing"):
        parse(content)


def test_a_token_that_takes_more_than_can_be_counted_is_refused() -> None:
    content = toy.plan_content()
    content["buffers"] += [
        {"name": f"cache.{layer}", "kind": "cache", "dtype": "int64", "width": 2**20} for layer in range(2, 130)
    ]
    with pytest.raises(errors.PlanInvalid, match="a token takes 1073741862 bytes in all caches"):
        parse(content)


def test_a_plan_without_a_cache_is_refused() -> None:
    content = toy.plan_content()
    for buffer in content["buffers"]:
        if buffer["kind"] == "cache":
            buffer |= {"kind": "input", "size": 4}
    with pytest.raises(errors.PlanInvalid, match="none of them is a cache"):
        parse(content)


@pytest.mark.parametrize(
    ("other", "told"),
    [(CODES, "cache.0.codes (3 x int8)"), (-1, "cache.2 (5 x float32)"), (ARENA, "%0")],
    ids=["type", "width", "kind"],
)
def test_a_kernel_is_called_with_caches_of_one_width_and_type(other: int, told: str) -> None:
    content = toy.plan_content()
    content["buffers"].append({"name": "cache.2", "kind": "cache", "dtype": "float32", "width": 5})
    call = copy.deepcopy(content["entries"]["decode"]["calls"][0])
    call[1][CACHE] = range(len(content["buffers"]))[other]
    content["entries"]["prefill"]["calls"] = [call]
    wanted = f"the kernel toy_step: operand 6 is {told} in one call, cache.0 (4 x float32) in another"
    with pytest.raises(errors.PlanInvalid, match=re.escape(wanted)):
        parse(content)


def test_bfloat16_may_be_stored_as_uint16() -> None:
    content = toy.plan_content()
    content["buffers"][WEIGHT] = {"name": "w", "kind": "weight", "dtype": "bfloat16", "size": 6, "tensor": "bits"}
    assert parse(content).buffers[WEIGHT].bytes == 12


@pytest.mark.parametrize(
    ("layer", "size", "told"),
    [("0", 16, ""), ("0", 15, "each of 8 tokens"), ("x", 16, "number of a layer"), ("01", 16, "number of a layer")],
)
def test_experts_of_a_layer_are_a_buffer_with_a_row_for_each_token(layer: str, size: int, told: str) -> None:
    content = toy.plan_content()
    content["buffers"].append({"name": "chosen", "kind": "arena", "dtype": "int32", "size": size, "offset": 0})
    index = len(content["buffers"]) - 1
    content["entries"]["decode"]["experts"] = {layer: index}
    if told:
        with pytest.raises(errors.PlanInvalid, match=told):
            parse(content)
        return
    assert parse(content).entries["decode"].experts == {0: index}
    assert parse(content).expert_ids("decode", 3) == {0: (index, 6)}


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
        (["buffers", CACHE, "width"], 0),
        (["buffers", CACHE, "width"], -4),
        (["buffers", CACHE, "width"], 2**21),
        (["buffers", CACHE, "width"], 10**40),
        (["buffers", CACHE, "width"], 4.0),
        (["buffers", CACHE, "width"], True),
        (["buffers", CACHE, "dtype"], "float8"),
        (["buffers", CACHE, "dtype"], None),
        (["buffers", CACHE, "kind"], "weight"),
        (["buffers", CACHE, "name"], "cache"),
        (["buffers", CACHE, "name"], "cache.0.codes"),
        (["buffers", CACHE, "name"], "cache.00"),
        (["buffers", CACHE, "name"], "cache.0."),
        (["buffers", CACHE, "name"], "cache.1234567"),
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
        (["entries", "decode", "calls", 0], ["f", [14]]),
        (["entries", "decode", "calls", 0], ["f", [-1]]),
        (["entries", "decode", "calls", 0], ["f", [True]]),
        (["entries", "decode", "calls", 0], ["f", 0]),
        (["entries", "decode", "max_tokens"], 9),
        (["entries", "decode", "max_tokens"], 0),
        (["entries", "prefill", "min_tokens"], 0),
        (["entries", "prefill", "max_context"], 0),
        (["entries", "decode", "outputs"], []),
        (["entries", "decode", "outputs"], {}),
        (["entries", "decode", "outputs", "logits"], 0),
        (["entries", "decode", "outputs", "logits"], 99),
        (["entries", "decode", "outputs", "logits"], 9),
        (["entries", "mtp", "inputs", "hidden"], 0),
        (["entries", "mtp", "inputs", "hidden"], 8),
        (["entries", "mtp", "inputs"], []),
        (["entries", "decode", "experts"], []),
        (["entries", "decode", "experts"], {"1": ARENA}),
        (["entries", "decode", "experts"], {"1": 0}),
        (["entries", "decode", "experts"], {"1": 99}),
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
