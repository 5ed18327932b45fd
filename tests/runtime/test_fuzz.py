"""Whatever the bytes of an artifact are: it opens, or one typed error says why not."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime.artifact.artifact import parse_manifest
from dsv3c.runtime.artifact.jsonfile import parse_json
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor, parse_header
from dsv3c.runtime.errors import ArtifactFault
from tests.runtime import toy

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 16, 63, 64, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308]),
    st.integers(),
    st.text(max_size=8),
    st.sampled_from(["float32", "int32", "weight", "arena", "cache.0", "cache.0.codes", "int8", "../x", "tokens"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
TENSORS = {"scale": Tensor("float32", (1,), 128, 4)}


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to each value inside of a JSON value."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = [] if not path else [path]
    for key, value in inner:
        found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, content: Any) -> Any:
    """The content with one to three values replaced or removed."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(content) or [()]))
        if not path:
            return content
        at = content
        for key in path[:-1]:
            at = at[key]
        if draw(st.booleans()):
            at[path[-1]] = draw(VALUES)
        elif isinstance(at, dict):
            del at[path[-1]]
        else:
            at.pop(path[-1])
    return content


@given(mutated(toy.plan_content()) | mutated(toy.plan_of_version_1()))
@settings(max_examples=500)
def test_plan(content: Any) -> None:
    try:
        plan = parse_plan(content, TENSORS, toy.VOCAB)
    except ArtifactFault:
        return
    for entry in plan.entries.values():
        assert all(0 <= index < len(plan.buffers) for _, indices in entry.calls for index in indices)
        assert 1 <= entry.max_tokens <= plan.bounds.T
    for buffer in plan.buffers:
        assert buffer.kind != "arena" or 0 <= buffer.offset <= buffer.offset + buffer.bytes <= plan.arena_bytes
        assert buffer.kind != "weight" or buffer.bytes == TENSORS[buffer.tensor].bytes
        assert (1 <= buffer.width <= 2**20) if buffer.kind == "cache" else buffer.width == 0
    assert len({cache.name for cache in plan.caches}) == len(plan.caches) > 0
    assert sum(cache.slot_bytes for cache in plan.caches) == plan.slot_bytes <= 2**30
    rows = {
        (kernel, place, (plan.buffers[index].kind == "cache", plan.buffers[index].width, plan.buffers[index].dtype))
        for entry in plan.entries.values()
        for kernel, indices in entry.calls
        for place, index in enumerate(indices)
        if plan.buffers[index].kind == "cache"
    }
    assert len({(kernel, place) for kernel, place, _ in rows}) == len(rows), "a kernel is called with unlike caches"


CACHES = [i for i, buffer in enumerate(toy.plan_content()["buffers"]) if buffer["kind"] == "cache"]


@given(
    st.sampled_from(CACHES), st.dictionaries(st.sampled_from(["name", "kind", "dtype", "width"]), VALUES, min_size=1)
)
@settings(max_examples=300)
def test_a_cache_of_a_plan_is_as_it_should_be_or_refused(index: int, changes: dict[str, Any]) -> None:
    content = toy.plan_content()
    content["buffers"][index] |= changes
    try:
        cache = parse_plan(content, TENSORS, toy.VOCAB).buffers[index]
    except ArtifactFault:
        return
    assert (cache.kind, cache.dtype, cache.width) == tuple(content["buffers"][index][key] for key in KEYS)


KEYS = ("kind", "dtype", "width")


@given(mutated(toy.manifest_content({"plan.json": b"", "weights.safetensors": b"", "kernels/base.so": b""})))
@settings(max_examples=300)
def test_manifest(content: Any) -> None:
    try:
        manifest = parse_manifest(content)
    except ArtifactFault:
        return
    assert manifest.vocab_size > 0
    assert all(level.file in manifest.files for level in manifest.target.levels)


HEADER = {
    "__metadata__": {"format": "dsv3c"},
    "a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
    "b": {"dtype": "U8", "shape": [7], "data_offsets": [64, 71]},
}


@given(mutated(HEADER), st.integers(0, 200))
@settings(max_examples=500)
def test_weights_header(content: Any, size: int) -> None:
    data = json.dumps(content).encode()
    try:
        tensors = parse_header(data, 8 + len(data) + size)
    except ArtifactFault:
        return
    ends = sorted((tensor.offset, tensor.offset + tensor.bytes) for tensor in tensors.values())
    assert all(8 + len(data) <= begin <= end <= 8 + len(data) + size for begin, end in ends)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes(data: bytes) -> None:
    for parse in (lambda: parse_header(data, len(data)), lambda: parse_json(data, "x")):
        try:
            parse()
        except ArtifactFault:
            continue


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=200)
def test_one_byte_of_a_plan_changed(position: int, byte: int) -> None:
    data = bytearray(json.dumps(toy.plan_content()).encode())
    data[position % len(data)] = byte
    try:
        parse_plan(parse_json(bytes(data), "plan.json"), TENSORS, toy.VOCAB)
    except ArtifactFault:
        return
