"""`dsv3c bench --speculate`: its forms of output and its options."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from dsv3c.runtime import cli
from dsv3c.runtime.cli.bench_speculation import Report, render
from dsv3c.runtime.engine.generation import Drafted
from dsv3c.runtime.measure.speculation import Comparison, Settings
from tests.runtime import toy
from tests.runtime.cli.test_bench import cells
from tests.runtime.test_model import tokenizer_files

GOOD = Comparison("copy", 0.0, (10.0, 12.0), (20.0, 24.0), Drafted(40, 30, 10), 60, 4, 4)
BAD = Comparison("story", 1.0, (10.0, 10.0), (9.0, 9.0), Drafted(), 60, 4, 3, "out of luck")


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        "dsv3c.runtime.model.place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots))
    )
    return str(toy.write_artifact(tmp_path / "talking", **tokenizer_files()))


def report(*comparisons: Comparison, text: str | None = None) -> Report:
    return Report("toy", {"device": "toy"}, "n-gram lookup", text, Settings(16, 2), comparisons)


def test_markdown() -> None:
    out = render(report(GOOD, BAD), "md")
    titles, _, good, bad = cells(out)
    assert titles[:5] == ["text", "temperature", "plain t/s", "drafted t/s", "ratio"]
    assert good == ["copy", "0", "11.0", "22.0", "2.00", "75.0%", "4.00", "50.0%", "yes"]
    assert bad == ["story", "1", "10.0", "9.00", "0.90", "–", "0.00", "0.0%", "no: 3 of 4"]
    assert "at worst 0.90 of the plain speed (story, temperature 1)" in " ".join(out.split())
    assert "1 drafted answers have other tokens" in out and "Drafting ended: out of luck" in out
    assert "the model's own" in out and "from book.txt" in render(report(GOOD, text="book.txt"), "md")
    assert "other tokens" not in render(report(GOOD), "md")


def test_json_and_csv_have_the_same_rows() -> None:
    content = json.loads(render(report(GOOD, BAD), "json"))
    assert (content["device"], content["text"]) == ({"device": "toy"}, None)
    good, bad = content["tests"]
    assert (good["plain_ts"], good["drafted_ts"], good["ratio"], good["acceptance"]) == (11, 22, 2, 0.75)
    assert (good["samples_plain_ts"], good["n_gen"], good["repetitions"]) == ([10, 12], 16, 2)
    assert (bad["acceptance"], bad["same"], bad["answers"], bad["fault"]) == (None, 3, 4, "out of luck")
    rows = list(csv.DictReader(io.StringIO(render(report(GOOD, BAD), "csv"))))
    assert [row["ratio"] for row in rows] == ["2.0", "0.9"]
    assert set(rows[0]) == set(good) - {"samples_plain_ts", "samples_drafted_ts"}


def test_the_command(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("".join(chr(48 + 7 * i % 48) for i in range(70)))
    args = ["bench", artifact, "--speculate", "ngram", "--text", str(book), "-n", "4", "-r", "1"]
    assert cli.run(args) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert [row[-1] for row in cells(captured.out)] == ["same text", cells(captured.out)[1][-1], *["yes"] * 4]
    assert "toy, drafts by n-gram lookup; texts are from book.txt" in captured.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-b", "1"), "does not go with --batch"),
        (("-p", "0"), "does not go with --prompt-tokens"),
        (("-d", "0"), "does not go with --depth"),
        (("--per-op",), "does not go with --per-op"),
        (("--plot", "a.svg"), "does not go with --plot"),
        (("-n", "4,8"), "one number of tokens from 2 on"),
        (("-n", "1"), "one number of tokens from 2 on"),
        (("-n", "0"), "one number of tokens from 2 on"),
        (("--draft", "SMALL"), "give either --speculate or --draft"),
    ],
)
def test_what_does_not_go_with_it_is_wrong_usage(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["bench", "OUT", "--speculate", "ngram", *args]) == 2
    assert said in capsys.readouterr().err


def test_a_drafter_that_is_not_there_is_an_error(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--draft", "--speculate"):
        assert cli.run(["bench", artifact, option, "oracle"]) == 1
        assert "oracle" in capsys.readouterr().err
