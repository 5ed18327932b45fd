"""`generate --expert-stats`: both files, what they hold, and that nothing else is overwritten."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest

from dsv3c.runtime.cli import group
from dsv3c.runtime.cli.expert_map import svg
from dsv3c.runtime.cli.expert_report import MARK, counted, expert_options, files_of
from dsv3c.runtime.engine.expert_stats import ExpertStats
from dsv3c.runtime.errors import StepInvalid

SVG = "{http://www.w3.org/2000/svg}"


class Counting:
    """Stands for the model: two layers of four experts; three tokens are counted."""

    artifact = SimpleNamespace(manifest=SimpleNamespace(model={"name": "a <model>"}), folder=Path("OUT"))
    windows: list[int]
    fails = False

    def generate(self) -> None:
        if self.fails:
            raise StepInvalid(where="x", reason="y")

    @contextmanager
    def count_experts(self, window: int) -> Iterator[ExpertStats]:
        self.windows = [window]
        stats = ExpertStats(experts=4, top_k=2, window=window)
        for layer in (1, 2):
            stats.add(layer, np.array([[0, 1], [0, 2], [0, 3]], np.int32))
        yield stats


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    monkeypatch.chdir(tmp_path)
    return Counting()


def generate(model: Any, *args: str) -> int:
    """A command with the options, as `generate` uses them."""

    @click.command()
    @expert_options
    def command(expert_stats: Path | None, expert_window: int) -> None:
        with counted(model, expert_stats, expert_window):
            model.generate()

    return group.run(command, args, "dsv3c")


@pytest.mark.parametrize("name", ["stats", "stats.json", "stats.svg"])
def test_counts_and_picture_are_written_side_by_side(
    name: str, model: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, "--expert-stats", name, "--expert-window", "2") == 0
    assert "experts of 3 tokens: stats.json, stats.svg" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["stats.json", "stats.svg"]
    found = json.loads(Path("stats.json").read_text())
    assert (found["made"], found["model"], found["tokens"], found["window_tokens"]) == (MARK, "a <model>", 3, 2)
    assert [(layer["layer"], layer["counts"]) for layer in found["layers"]] == [(1, [3, 1, 1, 1]), (2, [3, 1, 1, 1])]
    assert model.windows == [2]


def test_files_of_an_earlier_run_are_replaced_and_others_are_not(
    model: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, "--expert-stats", "stats") == 0
    assert generate(model, "--expert-stats", "stats") == 0
    Path("stats.svg").write_text("<svg>mine</svg>")
    model.windows = []
    assert generate(model, "--expert-stats", "stats") == 1
    assert "cannot write stats.svg: something else is there" in capsys.readouterr().err
    assert Path("stats.svg").read_text() == "<svg>mine</svg>"
    assert model.windows == []  # told before the model was loaded


def test_a_folder_that_is_not_there_is_told_before_anything_runs(
    model: Counting, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(model, "--expert-stats", "none/stats") == 1
    assert "cannot write none/stats.json" in capsys.readouterr().err


def test_a_fault_leaves_no_files(model: Counting) -> None:
    model.fails = True
    assert generate(model, "--expert-stats", "stats") == 1
    assert list(Path().iterdir()) == []


def test_nothing_is_counted_where_no_file_is_given(model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "count_experts", lambda *_: pytest.fail("counted"))
    assert generate(model) == 0


def test_other_suffixes_stay_in_the_name() -> None:
    assert files_of(Path("a/run.1")) == (Path("a/run.1.json"), Path("a/run.1.svg"))
    assert files_of(Path("a/run.SVG")) == (Path("a/run.json"), Path("a/run.svg"))


def stats(experts: int, top_k: int, tokens: int, window: int) -> ExpertStats:
    found = ExpertStats(experts, top_k, window)
    for layer in range(3, 8):
        weight = np.random.default_rng(layer).random((tokens, experts)) ** 4
        found.add(layer, np.argsort(-weight)[:, :top_k].astype(np.int32))
    return found


def test_the_map_has_a_cell_for_each_expert_of_each_layer() -> None:
    """One layer visits expert 2 alone: its cell is the only one."""
    found = ExpertStats(experts=4, top_k=1, window=9)
    found.add(5, np.full((3, 1), 2, np.int32))
    (path,) = ET.fromstring(svg(found, "m", MARK)).findall(f"{SVG}path")
    assert path.attrib == {"fill": "#123a5e", "d": "M112 56h24v14h-24z"}  # darkest, third of 24 points from 64 on


@pytest.mark.parametrize(("window", "panels"), [(10, 2), (50, 1), (100, 1)])
def test_the_last_tokens_are_drawn_apart_where_they_are_not_all(window: int, panels: int) -> None:
    texts = [each.text for each in ET.fromstring(svg(stats(64, 6, 50, window), "m", MARK)).iter(f"{SVG}text")]
    assert texts.count("layer") == panels
    assert ("the last 10 tokens" in texts) == (panels == 2)


def test_a_map_of_many_experts_stays_small_and_within_its_page() -> None:
    picture = svg(stats(256, 8, 40, 10), "m", MARK)
    root = ET.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert len(picture) < 100_000
    for each in root.iter(f"{SVG}rect"):
        if each.attrib["width"] != "100%":
            assert float(each.attrib["x"]) + float(each.attrib["width"]) <= width
            assert float(each.attrib["y"]) + float(each.attrib["height"]) <= height
    for each in root.iter(f"{SVG}text"):
        assert 0 <= float(each.attrib["x"]) <= width and 0 <= float(each.attrib["y"]) <= height


def test_a_run_without_tokens_has_a_map_without_cells() -> None:
    root = ET.fromstring(svg(ExpertStats(8, 2, 4), "m", MARK))
    assert root.findall(f"{SVG}path") == []
