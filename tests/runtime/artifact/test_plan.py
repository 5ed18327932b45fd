"""A plan as written and read: the same values, whatever they are, and the files of earlier and later versions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.costs import Cost
from dsv3c.runtime.artifact.dispatches import ONE, Axis, Form, R, T, Table
from dsv3c.runtime.artifact.plan import NEVER, PLAN_VERSION, SHORT, Bounds, Buffer, Cut, Entry, Output, Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import ALIGNMENT, Tensor
from tests.runtime import toy

VOCAB = 5
TENSORS = {"w": Tensor("int8", (256,), 128, 256), "é": Tensor("bfloat16", (7,), 384, 14)}
WEIGHTS = [
    Buffer("w", "weight", "int8", 256, tensor="w"),
    Buffer("w+0", "weight", "int8", 64, tensor="w", parted=True),
    Buffer("w+128", "weight", "int8", 128, 128, "w", parted=True),
    Buffer("é", "weight", "bfloat16", 7, tensor="é"),
]
SMALL, NUMBERS = st.integers(1, 9), st.integers(0, 2**31 - 1)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    return Axis(draw(NUMBERS), draw(st.sampled_from([T, R, ONE])), draw(SMALL), draw(st.none() | SMALL))


@st.composite
def tables(draw: st.DrawFn, operands: dict[str, int]) -> Table:
    def form(name: str, number: int, most: int | None, requires: frozenset[str]) -> Form:
        grid = tuple(draw(st.lists(axes(), min_size=1, max_size=3)))
        writes = draw(st.frozensets(st.integers(0, operands[name] - 1)))
        return Form(f"{name}_{number}", draw(st.sampled_from([T, R])), most, grid, writes, requires)

    def forms(name: str) -> tuple[Form, ...]:
        more = draw(st.lists(st.tuples(st.none() | SMALL, st.frozensets(st.sampled_from("ab"))), max_size=2))
        return (*(form(name, number, *each) for number, each in enumerate(more)), form(name, 9, None, frozenset()))

    return Table(draw(st.integers(1, 1024)), {name: forms(name) for name in operands})


@st.composite
def costs(draw: st.DrawFn) -> Cost:
    experts = draw(st.integers(0, 8))
    top_k = draw(st.integers(1, experts)) if experts else 0
    rows, factors = draw(st.sampled_from("TR")), draw(st.sampled_from(("float32", "int8")))
    return Cost(rows, factors, *(draw(NUMBERS) for _ in range(6)), experts, top_k, draw(SMALL))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with whatever a plan can have, each part there or not."""
    bounds = Bounds(*(draw(SMALL) for _ in "TRSP"))
    rows = draw(st.lists(st.tuples(st.sampled_from(["float32", "bfloat16", "int8"]), SMALL), min_size=1, max_size=3))
    logits = Buffer("logits", "arena", "float32", bounds.R * VOCAB)
    hidden = Buffer("hidden", "arena", "float32", bounds.T * 3, 1024)
    buffers = [Buffer(name, "input", "int32", size) for name, size in bounds.step_inputs().items()]
    buffers += [Buffer("before", "input", "float32", bounds.T * 3), logits, hidden]
    given, first, second = len(buffers) - 3, len(buffers) - 2, len(buffers) - 1
    chosen = len(buffers)
    buffers.append(Buffer("chosen", "arena", "int32", bounds.T * 2, 3072))
    caches = range(len(buffers), len(buffers) + len(rows))
    buffers += [Buffer(f"cache.{i}", "cache", dtype, 0, width=width) for i, (dtype, width) in enumerate(rows)]
    buffers += draw(st.lists(st.sampled_from(WEIGHTS), unique=True))
    operands = {f"k_{number}": draw(st.integers(1, 4)) for number in range(draw(SMALL))}

    def calls() -> tuple[Any, ...]:
        names = draw(st.lists(st.sampled_from(sorted(operands)), min_size=1, max_size=4))
        return tuple((name, tuple(operand(name, place) for place in range(operands[name]))) for name in names)

    def operand(kernel: str, place: int) -> int:
        """A kernel has the same cache at one place, whenever it is called."""
        if kernel != "k_0" and place == 0:
            return caches[int(kernel[2:]) % len(caches)]
        return draw(st.sampled_from([index for index, buffer in enumerate(buffers) if buffer.kind != "cache"]))

    def entry(name: str) -> Entry:
        outputs = {"logits": Output(first, "R")} | ({"hidden": Output(second, "T")} if draw(st.booleans()) else {})
        made = (*calls(), ("k_0", (second,) * operands["k_0"]))
        cut = Cut(len(made) - 1, tuple(range(len(made) - 1)), second, ((len(made) - 1, 0),))
        inputs = {"hidden": given} if draw(st.booleans()) else {}
        limits, experts = (draw(SMALL), draw(st.integers(1, bounds.T))), draw(st.sampled_from([{}, {2: chosen}]))
        longest = draw(SMALL) if name.startswith(SHORT) else NEVER
        return Entry(name, made, outputs, inputs, *limits, draw(cuts(cut)), experts=experts, max_context=longest)

    listed = st.sampled_from([["decode"], ["decode", "prefill", "mtp"], ["decode", f"{SHORT}decode"]])
    entries = {name: entry(name) for name in draw(listed)}
    if draw(st.booleans()):
        buffers += [
            Buffer("token", "arena", "int32", bounds.R, 2048),
            Buffer("sampling", "input", "int32", bounds.R * 8),
        ]
        entries["decode.greedy"] = entries["decode"].drawn("decode.greedy", calls(), len(buffers) - 2)
    called = {name: operands[name] for each in entries.values() for name, _ in each.calls}
    return Plan(
        bounds,
        draw(SMALL),
        4096 * ALIGNMENT,
        tuple(buffers),
        entries,
        draw(st.none() | st.fixed_dictionaries({"k_0": costs()})),
        draw(st.none() | tables(called)),
    )


def cuts(cut: Cut) -> st.SearchStrategy[tuple[Cut, ...]]:
    return st.sampled_from([(), (cut,)])


def parse(content: Any) -> Plan:
    return parse_plan(content, TENSORS, VOCAB)


@given(plans())
@settings(max_examples=50)
def test_what_is_written_is_read_as_it_was(plan: Plan) -> None:
    assert parse(json.loads(json.dumps(plan.to_json()))) == plan


@given(plans())
@settings(max_examples=20)
def test_keys_of_a_later_version_are_passed_over(plan: Plan) -> None:
    content = plan.to_json()
    for place in (content, content["buffers"][0], content["entries"]["decode"], content["bounds"]):
        place["of a later version"] = [1]
    assert parse(content) == plan


def test_a_later_version_itself_is_refused() -> None:
    content = toy.plan_content() | {"version": PLAN_VERSION + 1}
    with pytest.raises(errors.FormatNewer):
        parse_plan(content, {}, toy.VOCAB)


def of_toy(**rows: Any) -> Plan:
    content = toy.plan_content()
    content["entries"]["decode"] |= rows
    return parse_plan(content, {"scale": Tensor("float32", (1,), 128, 4)}, toy.VOCAB)


def test_a_plan_states_what_its_outputs_have_rows_of() -> None:
    plan = of_toy(rows={"logits": "R", "hidden": "T"})
    assert plan == of_toy(), "what earlier plans meant without a word"
    written = plan.to_json()["entries"]
    assert (written["decode"]["rows"], written["mtp"]["rows"]) == ({"logits": "R", "hidden": "T"}, {"logits": "R"})
    outputs = plan.entries["decode"].outputs
    assert [plan.row_bytes(outputs[name]) for name in ("logits", "hidden")] == [4 * toy.VOCAB, 4 * toy.HIDDEN]
    assert [outputs[name].count(tokens=7, rows=2) for name in ("logits", "hidden")] == [2, 7]


@pytest.mark.parametrize(
    "rows",
    [[], {}, {"logits": "R"}, {"logits": "T", "hidden": "T"}, {"logits": "R", "hidden": "R"}, {"logits": 1},
     {"logits": "R", "hidden": "S"}],
)  # fmt: skip
def test_other_rows_are_refused(rows: Any) -> None:
    with pytest.raises(errors.PlanInvalid, match="rows"):
        of_toy(rows=rows)
