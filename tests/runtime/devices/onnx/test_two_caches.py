"""Two caches a layer, of float32[4] and int8[3], behind a graph that sums up what it finds in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dsv3c import runtime
from dsv3c.runtime.engine.session import Request
from dsv3c.runtime.errors import GraphInvalid, PlanInvalid
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.slots import SPANS, check_rows

PARTS = {"key": (TensorProto.FLOAT, toy.LATENT), "codes": (TensorProto.INT8, toy.CODES)}
ROWS = {"key": ["token", "position", "token", "position"], "codes": ["token", "position", "token"]}


def graph(parts: dict[str, tuple[int, int]] = PARTS) -> bytes:
    """Logits of the last token: the sums over all rows of each cache of layer 0, then of layer 1, then zeros."""
    value = helper.make_tensor_value_info
    ids = {"input_ids": "sequence", "attention_mask": "total", "position_ids": "sequence"}
    inputs = [value(name, TensorProto.INT64, ["batch", length]) for name, length in ids.items()]
    inputs.append(value("num_logits_to_keep", TensorProto.INT64, [1]))
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "kept", toy.VOCAB])]
    outputs.append(value("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", toy.HIDDEN]))
    sums = toy.LAYERS * sum(width for _, width in parts.values())
    constants = {"aside": [1, 3], "one": [1], "rows_and_heads": [1, 2]}
    constants["back"] = [0, -1, toy.HIDDEN]
    initializers = [helper.make_tensor(name, TensorProto.INT64, [len(of)], of) for name, of in constants.items()]
    rest = toy.VOCAB - sums
    initializers.append(helper.make_tensor("zeros", TensorProto.FLOAT, [1, rest], [0.0] * rest))
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["position_ids"], ["places"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "aside"], ["token"]),
        helper.make_node("Unsqueeze", ["places", "aside"], ["position"]),
        helper.make_node("Concat", ["token", "position"], ["both"], axis=3),
        helper.make_node("Reshape", ["both", "back"], ["last_hidden_state"]),
    ]
    found = []
    for name, element, width, row in [
        (f"{layer}.{part}", *parts[part], ROWS[part]) for layer in range(toy.LAYERS) for part in parts
    ]:
        past, present = f"past_key_values.{name}", f"present.{name}"
        inputs.append(value(past, element, ["batch", 1, "past", width]))
        outputs.append(value(present, element, ["batch", 1, "total", width]))
        nodes += [
            helper.make_node("Concat", row, [f"wide.{name}"], axis=3),
            helper.make_node("Cast", [f"wide.{name}"], [f"row.{name}"], to=element),
            helper.make_node("Concat", [past, f"row.{name}"], [present], axis=2),
            helper.make_node("Cast", [present], [f"floats.{name}"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"floats.{name}", "rows_and_heads"], [f"sum.{name}"], keepdims=0),
        ]
        found.append(f"sum.{name}")
    nodes.append(helper.make_node("Concat", [*found, "zeros"], ["flat"], axis=1))
    nodes.append(helper.make_node("Unsqueeze", ["flat", "one"], ["last"]))
    nodes.append(helper.make_node("Concat", ["one", "num_logits_to_keep", "one"], ["shape"], axis=0))
    nodes.append(helper.make_node("Expand", ["last", "shape"], ["logits"]))
    made = helper.make_graph(nodes, "model", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def plan() -> Any:
    content = toy.plan_content()
    content["entries"] = {"decode": content["entries"]["decode"] | {"calls": []}}
    return content


def written(folder: Path, content: Any, model: bytes) -> Path:
    toy.write_artifact(folder, content, model__onnx=model)
    target = {"name": "onnx", "levels": [], "provider": "cpu", "graphs": {"decode": "model.onnx"}}
    toy.edit_json(folder / "manifest.json", "target", value=target)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = written(tmp_path_factory.mktemp("onnx") / "toy", plan(), graph())
    with runtime.load(folder, threads=1, max_batch=3) as loaded:
        yield loaded


def sums(tokens: list[int]) -> list[float]:
    token, position = float(sum(tokens)), float(sum(range(len(tokens))))
    of = {"token": token, "position": position}
    found = [of[name] for _ in range(toy.LAYERS) for part in PARTS for name in ROWS[part]]
    return found + [0.0] * (toy.VOCAB - len(found))


def test_every_cache_keeps_its_rows_also_apart_and_behind_a_fork(model: Model) -> None:
    """Pages of two sequences that grow by turns follow one another in neither; the fork has a page copied."""
    texts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]]
    sequences = [model.new_sequence() for _ in texts]

    def last(sequence: Any, tokens: list[int]) -> list[float]:
        (found,) = model.session.run([Request(sequence, np.array(tokens, np.int32), "last")])
        return found[-1].tolist()

    for begin, end in ((0, 3), (3, 7), (7, 10)):
        for sequence, text in zip(sequences, texts, strict=True):
            assert last(sequence, text[begin:end]) == sums(text[:end])
    assert np.any(np.diff(sequences[0].pages) != 1), "the pages follow one another: nothing was tested"
    fork = sequences[0].fork(9)
    assert last(fork, [40]) == sums([*texts[0][:9], 40])
    assert last(sequences[0], [41]) == sums([*texts[0], 41])
    for sequence in (*sequences, fork):
        sequence.close()
    assert model.report()["cache_bytes"] == model.report()["cache_slots"] * toy.LAYERS * (16 + 3)


@pytest.mark.parametrize(("start", "count"), SPANS)
def test_rows_of_slots_are_read_and_written(model: Model, start: int, count: int) -> None:
    check_rows(model.session.device, model.session.plan, start, count)


def test_a_graph_with_another_row_than_the_plan_states_is_refused(tmp_path: Path) -> None:
    other = plan()
    next(buffer for buffer in other["buffers"] if buffer["name"] == "cache.1.codes")["width"] = 2
    with pytest.raises(GraphInvalid, match=r"past_key_values\.1\.codes is tensor\(int8\).*must be.*'past', 2\]"):
        runtime.load(written(tmp_path / "toy", other, graph()))


def test_a_cache_of_a_type_that_graphs_do_not_have_is_named(tmp_path: Path) -> None:
    other = plan()
    next(buffer for buffer in other["buffers"] if buffer["name"] == "cache.0")["dtype"] = "bfloat16"
    with pytest.raises(PlanInvalid, match=r"cache\.0 is bfloat16, it must be one of float32, float16, int8, uint8"):
        runtime.load(written(tmp_path / "toy", other, graph()))
