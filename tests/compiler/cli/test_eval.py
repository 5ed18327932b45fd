"""`dsv3c eval`: which options go together, checkpoints to compare with, tables and pictures of sweeps."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dsv3c.compiler import cli
from dsv3c.compiler.cli import sweep_plot, sweep_table
from dsv3c.compiler.driver import measuring, pipeline
from dsv3c.compiler.driver.sweep import Row, Sweep, Table
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime import model as model_module
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer
from tests.runtime import toy

WORDS = "A HEN AND A LION BAKE A CAKE. A CHILD CAME: AM I LIKE A LION? NO, LIKE A HEN."
SVG = "{http://www.w3.org/2000/svg}"


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """stdout of a command that succeeds, stderr of one that fails."""
    found = cli.run(["eval", *args])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.err if code else captured.out


def figures(kl: float | None, name: str = "a.txt", change: float = 0.01) -> dict[str, Any]:
    errors = {
        "ratio_error": 0.002,
        "kl_error": 1e-4,
        "top1_error": 0.01,
        "reference_error": 0.5,
        "nll_change_error": 0.1,
    }
    values = {"ratio": 1 + change, "kl": kl, "top1": 0.97, "reference": 19.0, "nll_change": 0.1, "logit_error": 2.0}
    against = {**errors, **values, "kl_median": 0.1, "kl_90": 0.2, "kl_99": 0.3, "kl_max": 1.0}
    return {"text": name, "tokens": 100, "nll": 3.0, "nll_error": 0.1, "perplexity": 20.0, "perplexity_error": 2.0,
            "against": against}  # fmt: skip


def row(format: str, bits: float, kl: float | None, method: str = "rtn") -> Row:
    return Row(format, method, {}, bits, 11_200_000, 9.6, "cpu x86-64-v3", (figures(kl), figures(kl, "b.txt")))


@pytest.fixture
def table() -> Table:
    measured = {"texts": [{"text": "a.txt"}, {"text": "b.txt"}], "context": 512}
    rows = (
        row("float32", 32, 0.0),
        row("int8", 8.1, 3e-3),
        row("int4-g32", 4.6, 0.06),
        row("int4-g32", 4.6, 0.02, "x"),
    )
    return Table("tale", measured, rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the artifact `out`, the text `words.txt` and the checkpoint `tiny`, and is the current folder."""
    monkeypatch.setattr(
        model_module, "place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots))
    )
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path, toy.VOCAB)
    toy.write_artifact(tmp_path / "out", tokenizer__json=(tmp_path / "tokenizer.json").read_bytes())
    (tmp_path / "words.txt").write_text(WORDS)
    write_checkpoint(tmp_path / "tiny", tiny_config(num_hidden_layers=2))
    write_tokenizer(tmp_path / "tiny", 96)
    return tmp_path


def test_a_checkpoint_is_compiled_to_compare_with(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def stand_in(checkpoint: Path, out: Path, options: CompileOptions, progress: Any = None) -> None:
        asked.append((checkpoint.name, options.quant, options.target))
        toy.write_artifact(out)

    monkeypatch.setattr(pipeline, "compile_checkpoint", stand_in)
    report = json.loads(run(capsys, "out", "--text", "words.txt", "--against", "tiny", "--json"))
    assert asked == [("tiny", "float32", measuring.local_target())]
    assert report["against"] == "tiny in float32"
    assert report["texts"][0]["against"]["kl"] == 0


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("out", "--sweep", "tiny"),
        ("--sweep", "tiny", "--against", "out"),
        ("--sweep", "tiny", "--device", "0"),
        ("out", "--keep", "kept"),
        ("out", "-o", "table.json"),
        ("out", "--formats", "int8"),
        ("--sweep", "tiny", "--formats", "int8,int77"),
        ("--sweep", "tiny", "--formats", "int8,"),
        ("--sweep", "tiny", "-o", "table.xls"),
        ("--sweep", "tiny", "--plot", "plot.png"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_does_not_go_together_is_wrong_usage(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Error: " in run(capsys, *args, "--text", "words.txt", code=2)


@pytest.fixture
def swept(folder: Path, monkeypatch: pytest.MonkeyPatch, table: Table) -> list[str]:
    """Formats that were asked for, when no row is really made."""
    asked: list[str] = []

    def missing(sweep: Sweep, found: Table, progress: Any = None) -> Iterator[Row]:
        done = {each.format for each in found.rows}
        for format, _ in sweep.options:
            if format not in done:
                asked.append(format)
                yield row(format, 8.0 if format == "int8" else 4.5, 0.01)

    monkeypatch.setattr(Sweep, "missing", missing)
    return asked


def test_a_sweep_writes_each_form_of_its_table(
    folder: Path, swept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ("-o", "t.json", "-o", "t.csv", "-o", "t.md", "--plot", "p.svg")
    command = ("--sweep", "tiny", "--text", "words.txt", "--formats", "int8,int4", *outputs)
    out = run(capsys, *command)
    assert swept == ["int8", "int4-g32"]
    assert out.splitlines()[2].startswith("| format | method | bits/weight | size | Δ perplexity, words.txt | KL |")
    assert (folder / "t.md").read_text() == f"<!-- dsv3c eval --sweep -->\n{out}"
    assert [each["format"] for each in json.loads((folder / "t.json").read_text())["rows"]] == ["int8", "int4-g32"]
    with (folder / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(each["format"], each["text"], each["kl"]) for each in rows[::2]] == [
        ("int8", "a.txt", "0.01"),
        ("int4-g32", "a.txt", "0.01"),
    ]
    ElementTree.parse(folder / "p.svg")
    swept.clear()
    again = json.loads(run(capsys, *command, "--json"))
    assert swept == [] and len(again["rows"]) == 2


@pytest.mark.parametrize(
    "option", [("-o", "there.md"), ("-o", "there.csv"), ("-o", "there.json"), ("--plot", "there.svg")]
)
def test_nothing_else_is_overwritten(
    option: tuple[str, str], folder: Path, swept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / option[1]).write_text("mine")
    command = ("--sweep", "tiny", "--text", "words.txt", "--formats", "int8", *option)
    assert option[1] in run(capsys, *command, code=1)
    assert (folder / option[1]).read_text() == "mine" and swept == []


def test_a_row_of_the_table(table: Table) -> None:
    lines = sweep_table.markdown(table).splitlines()
    assert (
        lines[0] == "tale against float32, windows of 512 tokens; perplexity of float32: a.txt 19.0000, b.txt 19.0000"
    )
    figures = "+1.00% ± 0.20% | 0.003 ± 0.0001 | 97.0%"
    assert lines[5] == f"| int8 | rtn | 8.10 | 11.2 MB | {figures} | {figures} | 10 s |"


def test_the_picture_has_a_point_for_each_row_and_a_line_for_each_method(table: Table) -> None:
    root = ElementTree.fromstring(sweep_plot.svg(table))
    points = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in root.iter(f"{SVG}circle")]
    assert len(points) == 3  # float32's KL is 0
    assert all(sweep_plot.LEFT < x < sweep_plot.WIDTH - sweep_plot.RIGHT for x, _ in points)
    assert all(sweep_plot.TOP <= y <= sweep_plot.HEIGHT - sweep_plot.BOTTOM for _, y in points)
    (four, eight), (better,) = points[:2], points[2:]
    assert four[0] == better[0] < eight[0]
    assert four[1] < better[1] < eight[1]  # less KL stands lower
    # Logarithmic: a third of the KL is as far wherever it is.
    decade = (sweep_plot.HEIGHT - sweep_plot.TOP - sweep_plot.BOTTOM) / 2
    assert better[1] - four[1] == pytest.approx(decade * 0.4771, abs=0.2)
    words = [each.text for each in root.iter(f"{SVG}text")]
    assert {"int8", "int4-g32", "rtn", "x", "bits per linear weight", "0.001", "0.1"} <= set(words)


def test_a_picture_of_no_points_has_its_title(table: Table) -> None:
    empty = Table("a < b", table.measured, ())
    (title,) = ElementTree.fromstring(sweep_plot.svg(empty)).iter(f"{SVG}text")
    assert title.text == "a < b: KL from float32 on a.txt over size"
