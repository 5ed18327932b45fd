"""The table of dispatches: what is wrong is refused, and launches, grids and barriers of a step follow from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.runtime.artifact.dispatches import Table
from dsv3c.runtime.artifact.plan import Plan
from dsv3c.runtime.artifact.plan_reader import parse_plan
from dsv3c.runtime.artifact.weights import Tensor
from dsv3c.runtime.devices.cpu import features
from dsv3c.runtime.devices.dispatch import Steps, table_of, usable
from dsv3c.runtime.errors import ArtifactFault, PlanInvalid, UnknownCapability
from tests.runtime import toy
from tests.runtime.test_fuzz import mutated

TENSORS = {"scale": Tensor("float32", (1,), 128, 4)}
TOKENS, SEQUENCE, CONTROL, CACHE, LOGITS, HIDDEN = 0, 2, 5, 6, 8, 9


def form(function: str, writes: list[int], grid: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    row = {"function": function, "rows": 0, "most_rows": None, "grid": grid or [[1, 0, 1, None]], "writes": writes}
    return row | more


def content() -> Any:
    """The toy's plan with five calls: fill writes hidden, note the cache, read hidden and the cache, project logits."""
    plan = toy.plan_content()
    calls = [["fill", [TOKENS, HIDDEN]], ["note", [TOKENS, CACHE]], ["read", [HIDDEN, CACHE, LOGITS]]]
    calls += [["fill", [SEQUENCE, HIDDEN]], ["project", [HIDDEN, LOGITS]]]
    for name in ("decode", "prefill"):
        plan["entries"][name]["calls"] = calls
    del plan["entries"]["mtp"]
    plan["threads"] = 128
    plan["dispatches"] = {
        "fill": [
            form("fill_one", [1], most_rows=1),
            form("fill_few", [1], [[3, 0, 4, None], [5, None, 2, None]], most_rows=4),
            form("fill_many", [1], [[100, 0, 8, 17]]),
        ],
        "note": [form("note_0", [1])],
        "read": [form("read_0", [2])],
        "project": [form("project_0", [1], [[7, 1, 1, None]], rows=1)],
    }
    return plan


def parsed(plan: Any) -> tuple[Plan, Table]:
    checked = parse_plan(plan, TENSORS, toy.VOCAB)
    return checked, table_of(checked)


def steps(plan: Any | None = None) -> Steps:
    checked, table = parsed(plan or content())
    return Steps(checked, table, checked.entries["decode"])


@pytest.mark.parametrize(
    ("tokens", "functions"), [(1, "fill_one"), (2, "fill_few"), (4, "fill_few"), (5, "fill_many"), (8, "fill_many")]
)
def test_the_first_form_that_serves_the_rows_is_launched(tokens: int, functions: str) -> None:
    found = steps()
    assert found.launches(tokens, 1)[0].form.function == functions


def test_equal_keys_mean_equal_launches() -> None:
    found = steps()
    by_key: dict[Any, Any] = {}
    for tokens in range(1, 9):
        for rows in range(5):
            launches = found.launches(tokens, rows)
            assert by_key.setdefault(found.key(tokens, rows), launches) == launches
    assert len(by_key) == 6  # three forms, with and without rows


@pytest.mark.parametrize(
    ("tokens", "rows", "grids"),
    [
        (1, 1, [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [7, 1, 1]]),
        (3, 2, [[3, 3, 1], [3, 1, 1], [3, 1, 1], [3, 3, 1], [14, 1, 1]]),
        (8, 4, [[17, 1, 1], [8, 1, 1], [8, 1, 1], [17, 1, 1], [28, 1, 1]]),
    ],
)
def test_grids_round_up_and_are_capped(tokens: int, rows: int, grids: list[list[int]]) -> None:
    out = np.zeros((5, 3), np.uint32)
    assert steps().grids(tokens, rows, out) == 5
    assert out.tolist() == grids


def test_a_call_with_an_empty_grid_is_not_launched() -> None:
    found, out = steps(), np.zeros((5, 3), np.uint32)
    assert [launch.call for launch in found.launches(1, 0)] == [0, 1, 2, 3]
    assert found.grids(1, 0, out) == 4


def test_barriers_stand_where_memory_is_shared_and_nowhere_else() -> None:
    """note touches nothing of fill's; read reads both; fill overwrites what read reads; project reads fill's."""
    assert [launch.barrier for launch in steps().launches(1, 1)] == [False, False, True, True, True]


def test_results_that_share_bytes_of_the_arena_are_kept_apart() -> None:
    plan = content()
    plan["entries"]["decode"]["calls"] = [["fill", [TOKENS, HIDDEN]], ["note", [TOKENS, len(plan["buffers"])]]]
    del plan["entries"]["prefill"]  # where `note` has a cache
    overlapping = {"name": "%9", "kind": "arena", "dtype": "float32", "size": 4}
    offset = plan["buffers"][HIDDEN]["offset"]
    for at, barrier in ((offset, True), (0, False)):
        changed = copy.deepcopy(plan)
        changed["buffers"].append(overlapping | {"offset": at})
        assert [launch.barrier for launch in steps(changed).launches(1, 1)] == [False, barrier]


def test_a_form_that_asks_for_a_capability_is_taken_only_where_it_is() -> None:
    plan = content()
    plan["dispatches"]["note"].insert(0, form("note_fast", [1], requires=["dot4"]))
    checked, table = parsed(plan)
    for capabilities, function in (({"dot4", "more"}, "note_fast"), (set(), "note_0")):
        chosen = Steps(checked, usable(table, capabilities), checked.entries["decode"])
        assert chosen.launches(1, 1)[1].form.function == function


def test_forms_behind_one_for_any_number_of_rows_are_not_loaded() -> None:
    plan = content()
    plan["dispatches"]["note"].insert(0, form("note_fast", [1], requires=["dot4"]))
    _, table = parsed(plan)
    assert [form.function for form in usable(table, {"dot4"}).forms["note"]] == ["note_fast"]
    assert [form.function for form in usable(table, ()).forms["fill"]] == ["fill_one", "fill_few", "fill_many"]


def test_a_user_can_rule_capabilities_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = content()
    plan["dispatches"]["note"].insert(0, form("note_fast", [1], requires=["dot4"]))
    _, table = parsed(plan)
    monkeypatch.setenv("DSV3C_WITHOUT", "dot4")
    assert [form.function for form in usable(table, {"dot4"}).forms["note"]] == ["note_0"]
    monkeypatch.setenv("DSV3C_WITHOUT", "dot4,dot8")
    with pytest.raises(UnknownCapability, match="'dot8'; what kernels of the artifact ask of a device: dot4"):
        usable(table, {"dot4"})
    monkeypatch.setattr(features, "all_cpu_flags", lambda: frozenset({"dot8"}))  # it is for a device beside this one
    assert [form.function for form in usable(table, {"dot4"}).forms["note"]] == ["note_0"]


def test_the_largest_grid_is_that_of_the_largest_step_of_each_form() -> None:
    assert steps().largest() == (28, 3, 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: plan.pop("threads"), "threads: is missing"),
        (lambda plan: plan.pop("dispatches"), "dispatches: is missing"),
        (lambda plan: plan["dispatches"].pop("note"), "note: is missing, an entry calls it"),
        (lambda plan: plan["dispatches"]["note"].clear(), "has no form for any number of rows"),
        (lambda plan: plan["dispatches"]["note"][0].update(requires=["x"]), "has no form for any number of rows"),
        (lambda plan: plan["dispatches"]["note"][0].update(function="../x"), "is not an identifier"),
        (lambda plan: plan["dispatches"]["note"][0].update(function="read_0"), "two forms have the same function"),
        (lambda plan: plan["dispatches"]["note"][0].update(writes=[2]), "positions of its 2 operands"),
        (lambda plan: plan["dispatches"]["note"][0].update(rows=2), "rows: is 2"),
        (lambda plan: plan["dispatches"]["note"][0].update(grid=[]), "one to 3 axes"),
        (lambda plan: plan["dispatches"]["note"][0].update(grid=[[1, 0, 0, None]]), "tile at least 1"),
        (lambda plan: plan["dispatches"]["note"][0].update(grid=[[1, 7, 1, None]]), "index must be null, 0 or 1"),
        (lambda plan: plan["entries"]["decode"]["calls"].append(["fill", [0, 1, 2]]), "different numbers of operands"),
    ],
)
def test_what_is_wrong_is_refused(change: Any, says: str) -> None:
    plan = content()
    change(plan)
    with pytest.raises(PlanInvalid, match=says):
        parsed(plan)


@given(mutated(content()), st.integers(1, 8), st.integers(0, 4))
@settings(max_examples=500)
def test_any_table_is_refused_or_gives_launches_within_the_plan(plan: Any, tokens: int, rows: int) -> None:
    try:
        checked, table = parsed(plan)
    except ArtifactFault:
        return
    for entry in checked.entries.values():
        found = Steps(checked, table, entry)
        out = np.zeros((found.calls, 3), np.uint32)
        assert found.grids(tokens, rows, out) == len(found.launches(tokens, rows)) <= found.calls
        for launch in found.launches(tokens, rows):
            assert all(index < len(checked.buffers) for index in launch.buffers)
            assert all(index < len(launch.buffers) for index in launch.form.writes)
