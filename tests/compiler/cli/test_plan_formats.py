"""What `dsv3c plan` tells and writes of the formats of single weights, and the options that ask for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dsv3c.compiler import cli
from dsv3c.compiler.cli import plan_chart
from dsv3c.compiler.quantisation.quant_plan import PlannedWeight, QuantPlan
from tests.checkpoints import tiny_config, write_checkpoint
from tests.compiler.quantisation.test_quant_plan import WEIGHTS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config())
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> tuple[str, str]:
    assert cli.run([str(arg) for arg in args]) == code
    found = capsys.readouterr()
    return found.out, found.err


def test_a_plan_is_told_written_and_drawn(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, drawn = tmp_path / "plan.json", tmp_path / "plan.svg"
    args = ("plan", tiny, "--quant", "auto", "--target-bpw", "6.5", "--write-plan", written, "--plot", drawn)
    out, _ = run(capsys, *args)
    assert re.search(
        r"^formats: 6\.[345]\d bits for each linear weight, cost [\d.e-]+: relative square error", out, re.M
    )
    assert re.search(r"^  layers\.\*\.attention\.o_proj +\d\.\d\d bits  int", out, re.M)
    formats = {name: row["format"] for name, row in json.loads(written.read_text())["weights"].items()}
    cells = [title.text for title in ElementTree.parse(drawn).iter() if title.tag.endswith("title")]
    assert len(cells) == sum(name.startswith("layers.") for name in formats)
    assert any(f"{name}: {formats[name]}, " in str(cell) for cell in cells for name in formats)
    again = json.loads(run(capsys, "plan", tiny, "--quant-plan", written, "--json")[0])
    assert {name: row["format"] for name, row in again["quant_plan"]["weights"].items()} == formats


def test_of_one_format_for_all_the_plan_can_be_had_too(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "plan", tiny, "--quant", "int4", "--write-plan", tmp_path / "plan.json")
    rows = json.loads((tmp_path / "plan.json").read_text())["weights"]
    assert {row["format"] for name, row in rows.items() if name.startswith("layers")} == {"int4-g32"}
    assert (rows["head"]["format"], rows["embedding"]["format"]) == ("int8", "bfloat16")


@pytest.mark.parametrize("option", ["--write-plan", "--plot"])
def test_nothing_else_is_overwritten(
    option: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = tmp_path / "letter"
    letter.write_text("letter")
    _, err = run(capsys, "plan", tiny, option, letter, code=1)
    assert "is not overwritten" in err
    assert letter.read_text() == "letter"


def test_a_place_that_cannot_be_drawn_into_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, "plan", tmp_path / "none", "--plot", tmp_path / "none" / "plan.svg", code=1)
    assert "is no folder that this user may write to" in err


@pytest.mark.parametrize(
    ("text", "nbytes"), [("8GB", 8 * 10**9), ("700 MB", 7 * 10**8), ("1.5GiB", 3 << 29), ("200000", 200_000), ("9b", 9)]
)
def test_a_size_is_read_with_its_unit(
    text: str, nbytes: int, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsv3c.compiler.driver import size_report
    from dsv3c.compiler.errors import NotAViewError
    from dsv3c.compiler.options import CompileOptions

    asked: list[CompileOptions] = []

    def recorded(checkpoint: Path, options: CompileOptions, *_: object, **__: object) -> None:
        asked.append(options)
        raise NotAViewError(value="")

    monkeypatch.setattr(size_report, "plan_checkpoint", recorded)
    run(capsys, "plan", tiny, "--quant", "auto", "--max-size", text, code=1)
    assert asked[0].max_size == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "8XB", "8 G B", "1e9"])
def test_what_is_no_size_is_wrong_usage(text: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, "plan", tiny, "--quant", "auto", "--max-size", text, code=2)
    assert "is no size; write 8GB, 700MB or 7.5GiB" in err


def test_the_chart_shows_the_bits_of_each_layer_and_role() -> None:
    rows = tuple(PlannedWeight(weight, "int8", weight.parameters // 2) for weight in WEIGHTS)
    picture = plan_chart.svg(QuantPlan(rows, {}), "tiny <&>")
    root = ElementTree.fromstring(picture)
    texts = ["".join(each.itertext()) for each in root.iter() if each.tag.endswith("text")]
    assert "tiny <&>: 4.00 bits for each linear weight" in texts
    assert [text for text in texts if text in ("0", "1", "2")] == ["0", "1"]
    assert texts.count("4.00") == 4 and "experts.gate_up" in texts
    assert any("embedding int8, head int8" in text for text in texts)
    assert plan_chart.MARK in picture[:200]


def test_more_bits_have_another_shade() -> None:
    shades = [plan_chart.shade(bits) for bits in (2, 3, 4, 4.5, 5.5, 8, 16)]
    assert len(set(shades)) == len(shades)
