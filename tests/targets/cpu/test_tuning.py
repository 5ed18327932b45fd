"""Tuning records: what is accepted, and which level takes them up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.cpu.isa import tuned_levels
from dsv3c.targets.cpu.tuning import (
    RECORDS,
    SPACE,
    BadTuningRecord,
    Tuning,
    UnknownTuningRecord,
    check_known,
    read_record,
)
from dsv3c.targets.x86.levels import LEVELS
from tests.targets.cases.dense import linear_case
from tests.targets.cpu.harness import Kernels, lacking
from tests.targets.op_tests import Case, compare


def record(folder: Path, **changes: object) -> None:
    content = {"cpu": "some-cpu", "level": "x86-64-v4", "tuning": {"token_tile": 2}} | changes
    (folder / "some-cpu.json").write_text(json.dumps(content))


def test_a_record_holds_for_the_level_it_was_measured_at(tmp_path: Path) -> None:
    record(tmp_path)
    tuned = {level.name: level.tuning for level in tuned_levels(LEVELS, "some-cpu", tmp_path)}
    assert tuned.pop("x86-64-v4") == Tuning(token_tile=2)
    assert tuned == {level.name: level.tuning for level in LEVELS if level.name != "x86-64-v4"}


def test_numbers_of_lower_levels_replace_their_own_and_no_others(tmp_path: Path) -> None:
    record(tmp_path, lower={"x86-64-v3": {"tuning": {"prefetch_bytes": 512}}})
    own = {level.name: level.tuning for level in LEVELS}
    tuned = {level.name: level.tuning for level in tuned_levels(LEVELS, "some-cpu", tmp_path)}
    assert tuned["x86-64-v3"] == replace(own["x86-64-v3"], prefetch_bytes=512)
    assert tuned["x86-64-v3-vnni"] == own["x86-64-v3-vnni"]


def test_a_cpu_without_a_record_takes_the_defaults(tmp_path: Path) -> None:
    assert tuned_levels(LEVELS, "some-cpu", tmp_path) == LEVELS


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": {"token_tile": 5}},
        {"tuning": {"speed": 1}},
        {"tuning": [1]},
        {"tuning": {"token_tile": "4"}},
        {"tuning": {"token_tile": 4.0}},
        {"tuning": {"row_blocks": True}},
        {"tuning": {"token_tile": [4]}},
        {"level": 4},
        {"lower": [1]},
        {"lower": {"x86-64-v3": {"prefetch_bytes": 512}}},
        {"lower": {"x86-64-v3": {"tuning": {"prefetch_bytes": 513}}}},
    ],
    ids=[
        "outside of the space",
        "unknown",
        "no object",
        "text",
        "float",
        "boolean",
        "list",
        "level is no text",
        "lower is no object",
        "lower without numbers",
        "lower outside of the space",
    ],
)
def test_a_wrong_record_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    record(tmp_path, **changes)
    with pytest.raises(BadTuningRecord, match=r"some-cpu\.json"):
        tuned_levels(LEVELS, "some-cpu", tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tuning": {}}', "\x00", "[" * 100_000, " " * (2 << 20)])
def test_a_malformed_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "some-cpu.json").write_text(text)
    with pytest.raises(Dsv3cError):
        read_record("some-cpu", tmp_path)


def test_an_unknown_cpu_is_told_the_known_ones(tmp_path: Path) -> None:
    record(tmp_path)
    with pytest.raises(UnknownTuningRecord, match="known: some-cpu"):
        check_known("other", tmp_path)


@pytest.mark.parametrize("cpu", ["../some-cpu", "sub/some-cpu", "/some-cpu", "..", "a\0", "\udcff", "a" * 300])
def test_a_path_is_no_cpu(cpu: str, tmp_path: Path) -> None:
    record(tmp_path)
    (tmp_path / "sub").mkdir()
    record(tmp_path / "sub")
    with pytest.raises(UnknownTuningRecord):
        check_known(cpu, tmp_path / "sub")


def test_the_shipped_records_are_valid() -> None:
    for path in RECORDS.glob("*.json"):
        assert read_record(path.stem) is not None


def test_the_defaults_are_in_the_space() -> None:
    assert all(value in SPACE[name] for name, value in Tuning().to_json().items())


@pytest.mark.parametrize("unroll", SPACE["float_unroll"])
@pytest.mark.parametrize("format", ["bfloat16", "float32"])
def test_products_of_floats_are_right_however_far_they_are_unrolled(format: str, unroll: int, tmp_path: Path) -> None:
    level = next((level for level in LEVELS if not lacking(level)), None)
    if level is None:
        pytest.skip("needs an x86 CPU with AVX2")
    level = level.tuned(replace(level.tuning, float_unroll=unroll))
    cases = {"linear": Case(*linear_case(format, 5, 33, 19))}
    for arrays in Kernels(cases, level, tmp_path).runs("linear", cases["linear"]):
        compare(arrays, *cases["linear"][1:])
