"""A sweep: what it compiles and measures, and that it goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3c.compiler.driver import measuring, pipeline
from dsv3c.compiler.driver.sweep import Chosen, Row, Sweep, Table, bits_per_weight
from dsv3c.compiler.errors import (
    BadOptionError,
    CalibrationError,
    SweepDiffersError,
    SweepFileError,
)
from dsv3c.compiler.formats.table import FORMATS, UnknownWeightFormat, WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.errors import TextTooShort
from dsv3c.runtime.measure.windows import Settings
from tests.checkpoints import tiny_config, write_checkpoint


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, bundled_artifact: Callable[..., Path]) -> list[str]:
    """Formats in the order in which they were compiled; what stands for compiling copies an artifact made once."""
    made: list[str] = []
    ready = {quant: bundled_artifact(quant) for quant in ("float32", "int8")}  # before nothing is compiled any more

    def stand_in(checkpoint: Path, out: Path, options: CompileOptions, progress: Any = None) -> Any:
        made.append(options.quant)
        shutil.copytree(ready[options.quant], out, dirs_exist_ok=options.overwrite)
        return SimpleNamespace(manifest=Artifact.open(out).manifest.content, seconds=1.234)

    monkeypatch.setattr(pipeline, "compile_checkpoint", stand_in)
    return made


def planned(checkpoint: Path, text: Path, *formats: str, **settings: Any) -> Sweep:
    return Sweep.of(checkpoint, [text], Settings(**settings), Chosen(formats))


def finished(found: Sweep, path: Path, rows: int | None = None) -> Table:
    """As the command does it: the table is written after each row; `rows`: killed after so many."""
    table = found.resumed(path)
    for number, row in enumerate(found.missing(table), start=1):
        table = table.with_row(row)
        table.write(path)
        if number == rows:
            break
    return table


def test_a_killed_sweep_goes_on_where_it_stopped(
    bundled_model: Path, text: Path, tmp_path: Path, compiled: list[str]
) -> None:
    path = tmp_path / "table.json"
    finished(planned(bundled_model, text, "int8", "float32"), path, rows=1)
    assert compiled == ["float32", "int8"]
    compiled.clear()
    table = finished(planned(bundled_model, text, "int8", "float32"), path)
    assert compiled == ["float32", "float32"]
    assert [row.format for row in table.rows] == ["float32", "int8"]
    compiled.clear()
    assert finished(planned(bundled_model, text, "int8", "float32"), path) == Table.read(path) == table
    assert compiled == []

    exact, rounded = (row.texts[0]["against"] for row in table.rows)
    assert (exact["kl"], exact["top1"], exact["ratio"]) == (0, 1, 1)
    assert 0 < rounded["kl"] < 0.05 and rounded["reference"] == exact["reference"]
    assert table.rows[1].bits_per_weight < table.rows[0].bits_per_weight / 3
    assert (table.rows[1].compile_seconds, table.rows[1].method) == (1.2, "rtn")
    assert table.rows[1].weights_bytes < table.rows[0].weights_bytes / 3


def test_a_row_that_was_made_otherwise_is_made_again(
    bundled_model: Path, text: Path, tmp_path: Path, compiled: list[str]
) -> None:
    path = tmp_path / "table.json"
    table = finished(planned(bundled_model, text, "int8"), path)
    dataclasses.replace(table, rows=(dataclasses.replace(table.rows[0], made={}),)).write(path)
    compiled.clear()
    assert finished(planned(bundled_model, text, "int8"), path) == table
    assert compiled == ["float32", "int8"]


def test_artifacts_stay_where_they_are_asked_for(
    bundled_model: Path, text: Path, tmp_path: Path, compiled: list[str]
) -> None:
    keep = tmp_path / "kept"
    list(Sweep.of(bundled_model, [text], Settings(), Chosen(("int8",), keep=keep)).missing(Table("", {}, ())))
    assert sorted(path.name for path in keep.iterdir()) == ["float32", "int8-rtn"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": 16}, "another --context"),
        ({"tokens": 40}, "another --tokens"),
        ({"bos": "window"}, "another --bos"),
    ],
)
def test_figures_that_were_counted_otherwise_stay(
    change: dict[str, Any], says: str, readable: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    Table("tiny", planned(readable, text, "int8").measured, ()).write(path)
    before = path.read_bytes()
    with pytest.raises(SweepDiffersError, match=says):
        planned(readable, text, "int8", **change).resumed(path)
    assert path.read_bytes() == before


def test_figures_of_other_inputs_stay(readable: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    Table("tiny", planned(readable, text, "int8").measured, ()).write(path)
    write_checkpoint(readable, tiny_config(num_hidden_layers=2), seed=1)
    with pytest.raises(SweepDiffersError, match="another checkpoint"):
        planned(readable, text, "int8").resumed(path)
    write_checkpoint(readable, tiny_config(num_hidden_layers=2))
    text.write_text(text.read_text() + "!")
    with pytest.raises(SweepDiffersError, match="other texts"):
        planned(readable, text, "int8").resumed(path)


def test_the_usual_context_may_be_given(readable: Path, text: Path) -> None:
    assert planned(readable, text, "int8", context=512).measured == planned(readable, text, "int8").measured


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "it is something else"),
        ('{"rows": []}', "it is something else"),
        ("no JSON", "table.json"),
        ('{"dsv3c_sweep": 1, "model": "", "measured": {}}', "it is damaged"),
        ('{"dsv3c_sweep": 1, "model": "", "measured": {}, "rows": [{"texts": []}]}', "it is damaged"),
    ],
)
def test_what_is_no_table_is_told(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(SweepFileError, match=says):
        Table.read(path)


def test_formats_and_methods_are_checked_before_any_work(readable: Path, text: Path) -> None:
    with pytest.raises(UnknownWeightFormat, match="'int7'"):
        planned(readable, text, "int8", "int7")
    with pytest.raises(BadOptionError, match="method is 'luck'; expected one of rtn"):
        Sweep.of(readable, [text], Settings(), Chosen(("int8",), ("luck",)))


def test_formats_without_codes_have_one_row(readable: Path, text: Path, tmp_path: Path) -> None:
    calibration = tmp_path / "calibration.txt"
    calibration.write_text(text.read_text() * 20)
    chosen = Chosen(("bfloat16", "int8"), ("rtn", "search", "gptq"), calibration)
    options = Sweep.of(readable, [text], Settings(), chosen).options
    assert list(options) == [("bfloat16", "rtn"), ("int8", "rtn"), ("int8", "search"), ("int8", "gptq")]
    assert [each.calibration for each in options.values()] == [None, None, calibration, calibration]


def test_rows_of_another_calibration_are_made_again(readable: Path, text: Path, tmp_path: Path) -> None:
    """Those that take a text; for the others nothing has changed."""
    calibration = tmp_path / "calibration.txt"
    made = []
    for count in (20, 21):
        calibration.write_text(text.read_text() * count)
        found = Sweep.of(readable, [text], Settings(), Chosen(("int8",), ("rtn", "gptq"), calibration))
        made.append({method: found._made("int8", method) for method in ("rtn", "gptq")})
    assert made[0]["rtn"] == made[1]["rtn"]
    assert made[0]["gptq"] != made[1]["gptq"]


def test_a_calibration_that_is_none_is_told_before_any_work(readable: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(CalibrationError):
        Sweep.of(readable, [text], Settings(), Chosen(("int8",), ("gptq",), tmp_path / "empty.txt"))


def test_by_default_a_sweep_has_a_format_of_each_width(readable: Path, text: Path) -> None:
    found = [format for format, _ in Sweep.of(readable, [text], Settings(), Chosen()).options]
    widths = {WeightFormat.parse(format).grid.bits for format in found}
    assert widths == {row.grid.bits for row in FORMATS.values()} - {32}, "float32 is what they are compared with"
    assert len(found) == len(set(found)) < 20


def test_a_text_that_is_too_short_is_told_before_any_work(readable: Path, text: Path) -> None:
    text.write_text("Once")
    with pytest.raises(TextTooShort):
        planned(readable, text, "int8")


def test_bits_are_those_of_the_linear_weights() -> None:
    parts = {
        "attention": {"nbytes": 10, "weights": 10},
        "routed experts": {"nbytes": 5, "weights": 20},
        "embedding": {"nbytes": 999, "weights": 1},
        "head": {"nbytes": 999, "weights": 1},
        "norms": {"nbytes": 999, "weights": 1},
    }
    assert bits_per_weight({"weights": {"parts": parts}}) == 8 * 15 / 30


def test_rows_stand_by_size_and_once() -> None:
    def row(format: str, bits: float, seconds: float = 1) -> Row:
        return Row(format, "rtn", {}, bits, 1, seconds, "cpu", ())

    table = (
        Table("", {}, ()).with_row(row("int4-g32", 4.5)).with_row(row("int8", 8.1)).with_row(row("int4-g32", 4.5, 2))
    )
    assert [(each.format, each.compile_seconds) for each in table.rows] == [("int8", 1), ("int4-g32", 2)]


@pytest.mark.thorough
def test_a_sweep_of_real_compilations(readable: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = finished(planned(readable, text, "bfloat16", "int8"), path)
    figures = {row.format: row.texts[0]["against"] for row in table.rows}
    assert 0 < figures["bfloat16"]["kl"] < figures["int8"]["kl"] < 0.1
    assert json.loads(path.read_text())["rows"][1]["made"]["options"]["target"] == measuring.local_target()
    assert all(row.compile_seconds > 0 for row in table.rows)
