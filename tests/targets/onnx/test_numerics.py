"""ONNX Runtime computes what the graph says: weights rounded to every format, both forms of attention, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dsv3c.compiler.options import CompileOptions
from tests.conformance.cases import case
from tests.conformance.runs import relative_error
from tests.selection import shortlist
from tests.targets.onnx.conftest import Export, export_case

QUANTS = ("float32", "float16", "bfloat16", "int8", "int8-asym", "int4-g32", "int4-g32-asym", "int2-g16")
# Groups that fit the experts' widths, which QMoE takes, and widths that they do not divide, with plain nodes.
CASES = ("v3-grouped-yarn", "v3-odd-widths-3-shared", "v2-greedy")
EXACT = "onnx:accuracy_level=0"
LIMIT = 1e-5


@pytest.mark.parametrize("quant", shortlist(QUANTS, ["float32", "bfloat16", "int8", "int4-g32-asym", "int2-g16"]))
@pytest.mark.parametrize("name", shortlist(CASES, ["v3-odd-widths-3-shared"]))
def test_same_codes_and_scales_as_the_numpy_evaluation(name: str, quant: str, export: Export) -> None:
    """Without rounded activations, token by token (absorbed) and in one step (materialised where that pays)."""
    model = export(name, quant, EXACT)
    count = model.tokens.size
    long = model.lowered.entries.get("prefill")
    whole = "prefill" if long is not None and count >= long.min_tokens else "decode"
    for entry, chunks in (("decode", [1] * 10), (whole, [count])):
        assert relative_error(model.run(chunks), model.evaluated(entry, chunks)) <= LIMIT, entry


@pytest.mark.parametrize(
    ("gate_up", "down", "op"),
    [
        ("int4-g32", "int8", ""),
        ("int4-g16", "int4-g32-asym", ""),
        ("float16", "int4-g32", ""),
        ("int8-asym", "bfloat16", ""),
        ("int4-g32-asym", "int4-g32", "QMoE"),
        ("int4-channel", "int4-g32", "QMoE"),
        ("int4-g32", "int4-channel", ""),
        ("float32", "bfloat16", "MoE"),
    ],
)
def test_experts_whose_matrices_differ_in_format(gate_up: str, down: str, op: str, tmp_path: Path) -> None:
    """As `--quant auto` gives them. The contrib ops have codes of one kind for both, zero points aside."""
    parts = {"gate_up": gate_up, "down_proj": down}
    formats = {f"layers.{layer}.experts.{part}": of for layer in (1, 2) for part, of in parts.items()}
    options = CompileOptions(quant="int8", target=EXACT, formats=formats)
    model = export_case(tmp_path, case("v3-grouped-yarn"), options)
    graph = onnx.load(model.folder / "model.onnx", load_external_data=False).graph
    assert {node.op_type for node in graph.node} & {"MoE", "QMoE"} == ({op} if op else set())
    assert relative_error(model.run([1] * 10), model.evaluated("decode", [1] * 10)) <= LIMIT


@pytest.mark.parametrize("name", ["v32-mtp-yarn", "glm-dsa-real-heads"])
def test_what_an_indexer_chooses_is_attended_to_whether_gathered_or_masked(name: str, export: Export) -> None:
    """Of a context of several times as many positions; steps of a token gather, others mask."""
    model = export(name)
    assert {"index_topk", "mla_sparse"} <= {value.op for value in model.lowered.entries["decode"].graph.values()}
    for chunks in ([model.tokens.size], [1] * 20, [5, 20, *[1] * 4, 2]):
        assert relative_error(model.run(chunks), model.evaluated("decode", chunks)) <= LIMIT


@pytest.mark.parametrize("quant", ["float32", "int8"])
def test_a_context_of_which_an_indexer_would_choose_all_is_attended_to_as_a_dense_one(
    quant: str, export: Export
) -> None:
    """By the same two forms; chunks that end at index_topk and just behind it."""
    model = export("v32-mtp-yarn", quant, EXACT, index_topk=40)
    short = model.lowered.entries["short_prefill"]
    assert short.min_tokens <= 33
    for chunks in ([40], [33]):
        assert relative_error(model.run(chunks), model.evaluated("short_prefill", chunks)) <= LIMIT
    for chunks in ([1] * 45, [4] * 12, [41]):
        assert relative_error(model.run(chunks), model.evaluated("decode", chunks)) <= LIMIT


@pytest.mark.parametrize(("quant", "typical"), [("int8", 0.02), ("int8-g32", 0.02), ("int4-g32", 0.03)])
def test_rounded_activations_cost_what_eight_bits_cost(quant: str, typical: float, export: Export) -> None:
    """accuracy_level 4 rounds activations to int8, in groups as the weights have them. A model without experts."""
    model = export("youtu-own-head-yarn", quant)
    chunks = [1] * 20
    expected = model.evaluated("decode", chunks)
    errors = np.abs(model.run(chunks) - expected).max(axis=1) / np.abs(expected).max()
    assert 1e-5 < np.median(errors) <= typical


@pytest.mark.parametrize("quant", ["float16", "int4-g32"])
@pytest.mark.parametrize("name", ["v3-real-heads", "youtu-tied-5-heads", "v32-mtp-yarn"])
def test_float16_graph_for_gpus_runs_on_the_cpu_too(name: str, quant: str, export: Export) -> None:
    model = export(name, quant, "onnx:provider=cuda,accuracy_level=0")
    chunks = [20, *[1] * 5]
    expected = model.evaluated("decode", chunks)
    errors = np.abs(model.run(chunks) - expected).max(axis=1) / np.abs(expected).max()
    assert np.median(errors) <= 5e-3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("v3-grouped-yarn", {}),
        ("v2-group-limited-yarn", {}),
        ("glm-grouped-5-heads", {}),
        ("youtu-tied-5-heads", {}),
        ("v32-mtp-yarn", {}),
        ("v32-mtp-yarn", {"index_topk": 28}),
        ("v32-mtp-yarn", {"index_topk": 40}),
    ],
    ids=str,
)
def test_a_padded_batch_gives_what_its_sequences_give_alone(name: str, changes: dict[str, int], export: Export) -> None:
    """Two sequences of unequal length, padded on the left, then decoded together: prefill, a chunk, single tokens."""
    model = export(name, **changes)
    first, second = model.case.sequences
    size, short = 33, 19
    ids = np.zeros((2, size), np.int64)
    mask = np.zeros((2, size), np.int64)
    ids[0], ids[1, size - short :] = first[:size], second[:short]
    mask[0], mask[1, size - short :] = 1, 1
    together, past = model.step(ids, mask, model.empty_past(2))
    found = [[together[0]], [together[1, size - short :]]]
    at = [size, short]
    for count in (5, 1, 1):
        ids = np.stack([sequence[begin : begin + count] for sequence, begin in zip((first, second), at, strict=True)])
        mask = np.concatenate([mask, np.ones((2, count), np.int64)], axis=1)
        together, past = model.step(ids, mask, past)
        at = [begin + count for begin in at]
        for rows, logits in zip(found, together, strict=True):
            rows.append(logits)
    for sequence, rows, end in zip((first, second), found, at, strict=True):
        alone, _ = model.step(sequence[None, :end], np.ones((1, end)), model.empty_past())
        assert relative_error(np.concatenate(rows), alone[0]) <= LIMIT


def test_logits_are_kept_for_the_last_tokens(export: Export) -> None:
    model = export("v3-no-shared")
    ids, mask = model.tokens[None, :10], np.ones((1, 10))
    every, _ = model.step(ids, mask, model.empty_past())
    for kept, expected in ((0, every), (1, every[:, -1:]), (4, every[:, -4:])):
        logits, _ = model.step(ids, mask, model.empty_past(), num_logits_to_keep=np.array([kept]))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
