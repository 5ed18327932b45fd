from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.errors import WeightRangeError
from dsv3c.compiler.core import ops, pieces
from dsv3c.compiler.core.ir import TensorType, Value, topological_order
from dsv3c.compiler.core.ops.weight import Packed, decoded
from dsv3c.compiler.driver import weights
from dsv3c.compiler.formats.elements import NUMPY_DTYPES
from dsv3c.compiler.formats.quant import QTensor

FORMATS = (
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8-g32",
    "int4-g32",
    "int4-g64",
    "int4-g32-asym",
    "int8-tensor",
    "int2-g16-asym",
)
EXPERTS, WIDTH, HIDDEN = 5, 6, 40
STACKED = "mlp.experts.*.{}_proj.weight"
Tensors = dict[str, Any]


def param(name: str, *shape: int) -> Value:
    return ops.leaf("param", name, TensorType("f32", shape))


def op(name: str, *inputs: Value, **attrs: Any) -> Value:
    return ops.apply(name, inputs, attrs)


def stored(value: Value, format: str) -> Value:
    return op("pack", op("quantize", value, format=format), layout="rows16")


def mixture(format: str) -> dict[str, Value]:
    """Recipes as the passes leave them: experts with a shared one behind, a joined projection, a norm, an embedding."""
    gate, up = (param(STACKED.format(part), EXPERTS, WIDTH, HIDDEN) for part in ("gate", "up"))
    shared = op("reshape", param("mlp.shared.gate", WIDTH, HIDDEN), shape=(1, WIDTH, HIDDEN))
    both = [op("concat", weight, shared, axis=0) for weight in (gate, up)]
    pair = [op("reshape", weight, shape=(EXPERTS + 1, 1, WIDTH, HIDDEN)) for weight in both]
    columns = op("reshape", param("mlp.shared.down", HIDDEN, WIDTH), shape=(HIDDEN, 1, WIDTH))
    down = op(
        "concat",
        param(STACKED.format("down"), EXPERTS, HIDDEN, WIDTH),
        op("transpose", columns, axes=(1, 0, 2)),
        axis=0,
    )
    return {
        "gate_up": stored(op("concat", *pair, axis=1), format),
        "down": stored(down, format),
        "qkv": stored(op("concat", param("q", 17, HIDDEN), param("kv", 9, HIDDEN), axis=0), format),
        "norm": param("norm", HIDDEN),
        "embedding": op("quantize", param("embed", 7, HIDDEN), format="int8"),
        "inv_freq": ops.const((1.0, 0.5, 0.25)),
    }


def leaves(recipes: Mapping[str, Value]) -> Tensors:
    """Random tensors for all params."""
    rng = np.random.default_rng(0)
    found: Tensors = {}
    for value in recipes.values():
        for leaf in topological_order([value]):
            if leaf.op == "param":
                shape = [int(dim) for dim in leaf.shape]
                found.setdefault(str(leaf.attrs["name"]), rng.standard_normal(shape).astype(np.float32))
    return found


class Reader:
    """Gives tensors and keeps count of what was asked for."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.asked: list[tuple[str, int | None]] = []

    def __call__(self, name: str, index: int | None) -> Any:
        self.asked.append((name, index))
        return self.tensors[name] if index is None else self.tensors[name][index]


def components_of(result: Any) -> list[Any]:
    if isinstance(result, Packed):
        return list(result.components.values())
    if isinstance(result, QTensor):
        return [(result.codes[..., : result.k].astype(int) - 128).astype(np.int8), result.scale[..., 0]]
    return [result]


def written(recipes: Mapping[str, Value], path: Path, read: Any) -> dict[str, Any]:
    """The file's tensors, as the safetensors library reads them."""
    file = weights.lay_out(recipes)
    weights.write(file, path, read, lambda _: None)
    assert path.stat().st_size == file.nbytes
    return dict(safetensors.deserialize(path.read_bytes()))


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_holds_what_the_recipes_evaluate_to(tmp_path: Path, format: str) -> None:
    recipes = mixture(format)
    tensors = leaves(recipes)
    found = written(recipes, tmp_path / "w.safetensors", Reader(tensors))
    results = ops.evaluate(list(recipes.values()), lambda leaf: tensors[str(leaf.attrs["name"])])
    file = weights.lay_out(recipes)
    for name, result in zip(recipes, results, strict=True):
        arrays = components_of(result)
        assert len(arrays) == len(file.tensors[name])
        for tensor, array in zip(file.tensors[name], arrays, strict=True):
            entry = found[tensor.name]
            assert entry["dtype"] == weights.SAFETENSORS_DTYPES[tensor.component.dtype]
            assert tuple(entry["shape"]) == array.shape == tensor.component.shape
            assert NUMPY_DTYPES[tensor.component.dtype] == array.dtype
            assert bytes(entry["data"]) == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("format", ["bfloat16", "int4-g32-asym"])
def test_every_tensor_starts_on_a_cache_line_of_the_file(format: str) -> None:
    file = weights.lay_out(mixture(format))
    size = int.from_bytes(file.header[:8], "little")
    table = json.loads(file.header[8:])
    assert len(file.header) == 8 + size
    assert table.pop("__metadata__") == {"format": "dsv3c"}
    start = len(file.header)
    for tensors in file.tensors.values():
        for tensor in tensors:
            begin, end = table[tensor.name]["data_offsets"]
            assert start + begin == tensor.offset
            assert tensor.offset % 64 == 0
            assert end - begin == tensor.component.nbytes
    spans = sorted(entry["data_offsets"] for entry in table.values())
    assert spans[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
    assert start + spans[-1][1] == file.nbytes


def test_components_are_named_by_their_role() -> None:
    file = weights.lay_out(mixture("int4-g32-asym"))
    assert [tensor.name for tensor in file.tensors["qkv"]] == ["qkv", "qkv.scale", "qkv.zero"]
    assert file.component_bytes("norm") == 4 * HIDDEN


def test_one_expert_is_read_at_a_time_and_once(tmp_path: Path) -> None:
    recipes = mixture("int4-g32")
    read = Reader(leaves(recipes))
    written(recipes, tmp_path / "w.safetensors", read)
    stacked = [(name, index) for name, index in read.asked if "*" in name]
    names = [STACKED.format(part) for part in ("down", "gate", "up")]
    assert sorted(stacked) == [(name, index) for name in names for index in range(EXPERTS)]


def test_what_cannot_be_cut_is_read_whole_and_cut_after(tmp_path: Path) -> None:
    """A sum over stacked experts has no rule of its own."""
    recipes = {"w": op("add", param("a.*.b", 3, 4), param("c", 3, 4))}
    tensors = leaves(recipes)
    read = Reader(tensors)
    found = written(recipes, tmp_path / "w.safetensors", read)
    assert bytes(found["w"]["data"]) == (tensors["a.*.b"] + tensors["c"]).tobytes()
    assert ("a.*.b", None) in read.asked


def test_the_file_is_the_same_from_run_to_run(tmp_path: Path) -> None:
    recipes = mixture("int8-g32")
    tensors = leaves(recipes)
    for run in "ab":
        written(recipes, tmp_path / run, Reader(tensors))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_progress_counts_every_byte_of_the_tensors(tmp_path: Path) -> None:
    file = weights.lay_out(mixture("int8"))
    done: list[int] = []
    weights.write(file, tmp_path / "w", Reader(leaves(file.recipes)), done.append)
    assert sum(done) == file.tensor_bytes


def test_a_reader_that_fails_stops_the_writing(tmp_path: Path) -> None:
    recipes = {f"w{i}": param(f"w{i}", 4) for i in range(10_000)}
    asked, lock = [], threading.Lock()

    def read(name: str, _: int | None) -> Any:
        with lock:
            asked.append(name)
        raise ValueError("broken file")

    with pytest.raises(ValueError, match="broken file"):
        weights.write(weights.lay_out(recipes), tmp_path / "w", read, lambda _: None)
    assert len(asked) < len(recipes)


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("kept")
    with pytest.raises(FileExistsError):
        weights.write(weights.lay_out({}), tmp_path / "w", Reader({}), lambda _: None)
    assert (tmp_path / "w").read_text() == "kept"


@st.composite
def expressions(draw: st.DrawFn) -> Value:
    """Reshapes, transposes, concatenations and slices of stacked and plain params; quantised or packed at the end."""
    experts = draw(st.integers(1, 4))
    value = param("w.*.x", experts, draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    for number in range(draw(st.integers(0, 4))):
        value = draw(st.sampled_from([reshaped, transposed, joined, sliced]))(draw, value, number)
    if len(value.shape) < 3:
        return value
    kind = draw(st.sampled_from(["plain", "quantize", "pack"]))
    if kind == "plain":
        return value
    value = op("quantize", value, format=draw(st.sampled_from(FORMATS)))
    return op("pack", value, layout="rows16") if kind == "pack" else value


def sizes(value: Value) -> list[int]:
    return [int(dim) for dim in value.shape]


def reshaped(draw: st.DrawFn, value: Value, _: int) -> Value:
    shape = sizes(value)
    at = draw(st.integers(0, len(shape) - 1))
    if len(shape) > 2 and draw(st.booleans()):
        at = min(at, len(shape) - 2)
        return op("reshape", value, shape=(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))
    factor = draw(st.sampled_from([f for f in range(1, shape[at] + 1) if shape[at] % f == 0]))
    return op("reshape", value, shape=(*shape[:at], factor, shape[at] // factor, *shape[at + 1 :]))


def transposed(draw: st.DrawFn, value: Value, _: int) -> Value:
    return op("transpose", value, axes=tuple(draw(st.permutations(range(len(value.shape))))))


def joined(draw: st.DrawFn, value: Value, number: int) -> Value:
    shape = sizes(value)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape[axis] = draw(st.integers(1, 3))
    other = param(f"other{number}", *shape)
    return op("concat", *((value, other) if draw(st.booleans()) else (other, value)), axis=axis)


def sliced(draw: st.DrawFn, value: Value, _: int) -> Value:
    axis = draw(st.integers(-len(value.shape), len(value.shape) - 1))
    start = draw(st.integers(0, sizes(value)[axis] - 1))
    stop = draw(st.integers(start + 1, sizes(value)[axis]))
    return op("slice", value, axis=axis, start=start, stop=stop)


@settings(max_examples=150)
@given(expressions())
def test_a_part_of_a_recipe_is_the_part_of_its_value(value: Value) -> None:
    tensors = leaves({"w": value})
    read = Reader(tensors)
    (whole,) = ops.evaluate([value], lambda leaf: tensors[str(leaf.attrs["name"])])
    for index in range(int(value.shape[0])):
        piece = pieces.part(value, index)
        assert piece.type == TensorType(value.dtype, value.shape[1:], value.type.layout)
        (result,) = ops.evaluate([piece], lambda leaf: read(str(leaf.attrs["name"]), leaf.attrs.get("expert")))  # type: ignore[arg-type]
        assert np.array_equal(decoded(result), decoded(whole)[index])


@pytest.mark.parametrize(
    "value",
    [
        param("w.*.x", 3, 4, 6),
        op("reshape", param("w.*.x", 3, 4, 6), shape=(3, 2, 2, 6)),
        op("transpose", param("w.*.x", 3, 4, 6), axes=(0, 2, 1)),
        op("concat", param("w.*.x", 3, 4, 6), param("w.*.y", 3, 4, 1), axis=-1),
        op("concat", param("v", 1, 4, 6), param("w.*.x", 3, 4, 6), axis=-3),
        op("quantize", param("w.*.x", 3, 4, 6), format="int8"),
        stored(param("w.*.x", 3, 4, 6), "int4-g32"),
    ],
    ids=["param", "reshape", "transpose", "concat", "concat-first", "quantize", "pack"],
)
def test_each_rule_pushes_the_part_down_to_one_expert(value: Value) -> None:
    for index in range(int(value.shape[0])):
        stacked = [leaf for leaf in topological_order([pieces.part(value, index)]) if pieces.is_stacked(leaf)]
        assert stacked == []


LARGEST = float(np.finfo(np.float32).max)
# By format: the largest weight that it holds, and one that would become infinity, as a value or as a scale.
RANGES = {
    "float32": (LARGEST, None),
    "float16": (65504.0, 65520.0),
    "bfloat16": (3.3895e38, 3.4e38),
    "fp8": (LARGEST, None),
    "int8": (3.4e38, LARGEST),
    "int8-g32": (127 * 65504.0, 127 * 65520.0),
    "int4-g32": (8 * 65504.0, 8 * 65520.0),
    "int4-g32-asym": (15 * 65504.0, 15 * 65520.0),
}
PLACES = {
    "linear": "kv",
    "expert": STACKED.format("gate"),
    "shared expert": "mlp.shared.down",
    "embedding": "embed",
    "head": "lm_head",
    "norm": "norm",
}
EMBEDDING_FORMATS = ("float32", "float16", "bfloat16", "int8")


def places(format: str) -> dict[str, Value]:
    """The recipes of all places, the embedding in the format too where it can be."""
    embedding = op("quantize", param("embed", 7, HIDDEN), format=format if format in EMBEDDING_FORMATS else "bfloat16")
    return mixture(format) | {"embedding": embedding, "lm_head": stored(param("lm_head", 7, HIDDEN), format)}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format", RANGES)
def test_no_finite_weight_is_stored_as_infinity(format: str, place: str, sign: int, tmp_path: Path) -> None:
    recipes, name = places(format), PLACES[place]
    tensors = leaves(recipes)
    if place == "norm" or (place == "embedding" and format not in EMBEDDING_FORMATS):
        format = "bfloat16" if place == "embedding" else "float32"
    fits, too_large = RANGES[format]
    at = (2,) * tensors[name].ndim
    tensors[name][at] = np.float32(sign * fits)
    weights.write(weights.lay_out(recipes), tmp_path / "fits", Reader(tensors), lambda _: None)
    for result in ops.evaluate(list(recipes.values()), lambda leaf: tensors[str(leaf.attrs["name"])]):
        assert np.isfinite(decoded(result)).all()
    if too_large is None:
        return
    tensors[name][at] = np.float32(sign * too_large)
    with pytest.raises(WeightRangeError) as caught:
        weights.write(weights.lay_out(recipes), tmp_path / "w", Reader(tensors), lambda _: None)
    said = str(caught.value)
    assert name.replace("*", "2") in said and f"{sign * too_large:.5g}" in said and f"too large for {format}:" in said
    wider = "float32" if too_large > 3.39e38 else "bfloat16"
    assert f"choose a wider format, such as {wider}: --quant, --head-quant" in said
