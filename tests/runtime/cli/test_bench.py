"""`dsv3c bench`: its forms of output, its options, its picture. Nothing here depends on how fast anything is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from dsv3c.runtime import cli
from dsv3c.runtime.cli import bench_plot
from dsv3c.runtime.measure import bench
from dsv3c.runtime.measure.bench import Result
from dsv3c.runtime.measure.limits import Limits
from tests.runtime import toy
from tests.runtime.test_stored_artifacts import STORED, VERSIONS, runs_here

SIZES = ("-p", "7", "-n", "3", "-d", "0,10", "-r", "2")
TESTS = ["pp7", "tg3", "pp7 @ d10", "tg3 @ d10"]


class TimedToy(toy.ToyDevice):
    def run_timed(self, entry: str) -> NDArray[np.float64]:
        self.run(entry)
        return np.full(len(self.plan.entries[entry].calls), 1e-3)


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The toy, on a machine that reads 1 GB and does 2 billion operations a second, and 4 billion of int8."""
    return written(tmp_path, monkeypatch, {"row_flops": 10, "cache_row_bytes": 2})


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: dict[str, Any]) -> str:
    content = toy.plan_content() | {"costs": {"toy_step": cost}}
    monkeypatch.setattr(bench, "place", lambda artifact, slots, _: (artifact, TimedToy(artifact.plan, slots)))
    monkeypatch.setattr(bench.Bench, "limits", lambda self, progress: Limits(1e9, 2e9, 4e9))
    return str(toy.write_artifact(tmp_path / "toy", content))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """stdout of `dsv3c bench` that succeeds."""
    code = cli.run(["bench", *args])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert captured.err == "", "stderr is no terminal in a test"
    return captured.out


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_markdown(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, artifact, *SIZES)
    titles, rule, *rows = cells(out)
    assert titles[4:7] == ["test", "t/s", "min … max"]
    assert set("".join(rule)) <= set("-:")
    assert [row[4] for row in rows] == TESTS
    assert all(len(row) == len(titles) for row in rows)
    assert "memory is read at 1.00 GB/s; products run at 2.00 GFLOP/s in float32, 4.00 GOP/s in int8" in out
    assert len({len(line) for line in out.splitlines() if line.startswith("|")}) == 1, "columns are aligned"


@pytest.mark.parametrize(
    ("library", "said"),
    [(None, "not measured with artifacts for toy"), ("toy.so", "Compile it again with this version of dsv3c")],
)
def test_limits_that_were_not_measured_are_explained(
    artifact: str, library: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.Bench, "limits", lambda self, progress: Limits())
    monkeypatch.setattr(TimedToy, "report", lambda self: {"device": "toy", "library": library})
    out = run(capsys, artifact, *SIZES)
    assert said in out
    assert {row[2] for row in cells(out)[2:]} == {"toy"}, "the device stands where there is no level"


def test_markdown_by_kernel(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, artifact, *SIZES, "--per-op")
    titles = [line.removeprefix("### ") for line in out.splitlines() if line.startswith("### ")]
    assert titles == ["pp7", "one token of tg3", "pp7 @ d10", "one token of tg3 @ d10"]
    (row,) = (row for row in cells(out.partition("### one token of tg3\n")[2].partition("###")[0]) if row[1] == "scale")
    assert row[0] == "toy_step" and row[2:4] == ["1", "1.00 ms"]
    assert "1 kernel calls, 0.5 a layer" in out


def test_json(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, artifact, *SIZES, "--per-op", "-o", "json"))
    assert report["limits"] == {"read_bandwidth": 1e9, "float32_flops": 2e9, "int8_ops": 4e9}
    assert [test["test"] for test in report["tests"]] == TESTS
    deep = report["tests"][3]
    assert (deep["n_prompt"], deep["n_gen"], deep["n_depth"], deep["repetitions"]) == (0, 3, 10, 2)
    assert (deep["weight_bytes"], deep["cache_bytes"], deep["flops"]) == (4, 2 * 12, 10)
    seconds = sorted(deep["samples_s"])
    assert deep["min_ts"] == 3 / seconds[-1] and deep["max_ts"] == 3 / seconds[0]
    median = (seconds[0] + seconds[1]) / 2
    assert deep["gb_per_s"] == pytest.approx(3 * (4 + 2 * 12) / median / 1e9)
    assert deep["read_share"] == pytest.approx(deep["gb_per_s"])
    assert deep["matrix_share"] == pytest.approx(deep["gflops"] / 2)
    (operation,) = report["breakdowns"][1]["operations"]
    assert operation["gb_per_s"] == pytest.approx((4 + 2 * 2) / 1e-3 / 1e9)  # after 1, 2 and 3 tokens: 2 in the mean


@pytest.mark.parametrize(
    ("cost", "rate", "said"),
    [
        ({"row_flops": 10}, 2e9, "is the share of float32."),
        ({"row_flops": 10, "factors": "int8"}, 4e9, "is the share of int8 in products with integer weights"),
        # 10 of int8 and, after 11, 12 and 13 tokens, 20 of float32 for each of 12: the rates share the time
        ({"row_flops": 10, "factors": "int8", "pair_flops": 20}, 250 / (10 / 4e9 + 240 / 2e9), "of float32 in others"),
    ],
)
def test_the_share_is_of_the_rate_that_the_plan_says(
    cost: dict[str, Any],
    rate: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = written(tmp_path, monkeypatch, cost)
    deep = json.loads(run(capsys, path, *SIZES, "-o", "json"))["tests"][3]
    assert deep["matrix_share"] == pytest.approx(1e9 * deep["gflops"] / rate)
    assert said in run(capsys, path, *SIZES)


def test_csv(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, artifact, *SIZES, "--per-op", "-o", "csv")
    tests, breakdowns, operations = (list(csv.DictReader(io.StringIO(part))) for part in out.split("\n\n"))
    assert [row["test"] for row in tests] == TESTS
    assert [float(row["limit_read_bandwidth"]) for row in tests] == [1e9] * 4
    assert [row["launches"] for row in breakdowns] == ["1"] * 4
    assert {row["kernel"] for row in operations} == {"toy_step"}


def test_sequences_side_by_side(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = (artifact, "-p", "7", "-n", "3", "-b", "1,3", "-d", "10", "-r", "1")
    report = json.loads(run(capsys, *args, "-o", "json"))
    prompt, one, three = report["tests"]
    assert [test["test"] for test in report["tests"]] == ["pp7 @ d10", "tg3 @ d10", "tg3 @ b3 @ d10"]
    assert (three["n_gen"], three["n_sequences"], three["n_depth"]) == (3, 3, 10)
    (seconds,) = three["samples_s"]
    assert three["median_ts"] == pytest.approx(9 / seconds)
    assert three["median_ts_each"] == pytest.approx(3 / seconds)
    assert three["step_seconds"] == pytest.approx(seconds / 3)
    assert (three["weight_bytes"], three["step_weight_bytes"]) == (pytest.approx(4 / 3), 4)
    assert three["step_bytes"] == pytest.approx(4 + 2 * 3 * 12)
    assert three["weight_gb_per_s"] == pytest.approx(4 / (seconds / 3) / 1e9)
    assert three["allowed_ts"] == pytest.approx(3 * 1e9 / (4 + 2 * 3 * 12))
    assert three["read_share"] == pytest.approx(three["median_ts"] / three["allowed_ts"])
    assert three["over_one"] == pytest.approx(three["median_ts"] / one["median_ts"])
    assert three["over_one_by_bytes"] == pytest.approx(3 * (4 + 24) / (4 + 72))
    assert (one["over_one"], one["over_one_by_bytes"]) == (1, 1)
    assert {prompt[name] for name in ("step_seconds", "allowed_ts", "over_one")} == {None}
    out = run(capsys, *args)
    table = cells(out.partition("### Sequences side by side")[2])
    assert table[0][:2] == ["test", "t/s"] and [row[0] for row in table[2:]] == ["tg3 @ d10", "tg3 @ b3 @ d10"]
    assert table[3][-1] == "1.11"
    assert "side by side" not in run(capsys, artifact, *SIZES)


def test_a_batch_without_one_sequence_or_costs_says_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, monkeypatch, {})
    toy.write_artifact(Path(path))
    out = run(capsys, path, "-p", "0", "-n", "3", "-b", "3", "-r", "1")
    (row,) = cells(out.partition("### Sequences side by side")[2])[2:]
    assert row[0] == "tg3 @ b3" and row[4:] == ["–"] * 7


def test_a_batch_beyond_a_step_is_an_error(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", artifact, "-p", "0", "-n", "3", "-b", "1,4"]) == 1
    assert "a batch of 4 sequences is more than a step of this artifact holds, 3" in capsys.readouterr().err


def test_zero_leaves_a_test_out(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, artifact, "-p", "0", "-n", "2,3", "-r", "1", "-o", "json"))
    assert [test["test"] for test in report["tests"]] == ["tg2", "tg3"]
    assert report["tests"][0]["stddev_ts"] == 0


@pytest.mark.parametrize(
    "args",
    [
        ("-p", "many"),
        ("-p", ""),
        ("-n", "1,,2"),
        ("-n", "²"),
        ("-d", "-1"),
        ("-r", "0"),
        ("-t", "0"),
        ("-o", "xml"),
        ("-p", "0", "-n", "0"),
        ("--plot", "speed.jpg"),
        ("-b", "0"),
        ("--text", "book.txt"),
    ],
)
def test_wrong_options_are_wrong_usage(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "OUT", *args]) == 2
    assert "Error: " in capsys.readouterr().err


def test_a_context_beyond_the_model_is_an_error(artifact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", artifact, "-d", "60", "-p", "7", "-n", "3"]) == 1
    assert "needs a context of 67 tokens, the model holds 64" in capsys.readouterr().err


def test_png_without_matplotlib_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_plot.importlib.util, "find_spec", lambda name: None)
    assert cli.run(["bench", "OUT", "--plot", "speed.png"]) == 1
    assert "PNG needs the package matplotlib" in capsys.readouterr().err


def test_svg(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.svg"
    run(capsys, artifact, *SIZES, "--plot", str(path))
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"toy: speed over depth", "tokens in the context", "tokens per second", "tg3", "0", "10"} <= set(texts)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == 2


def test_a_plot_replaces_an_earlier_one_and_nothing_else(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, link = tmp_path / "speed.svg", tmp_path / "link.svg"
    link.symlink_to(path)
    for _ in range(2):
        run(capsys, artifact, *SIZES, "--plot", str(link))
    assert link.is_symlink() and "<svg" in path.read_text()
    monkeypatch.setattr(bench.Bench, "results", lambda self, progress: pytest.fail("it measured"))
    path.write_text("<svg>my drawing</svg>")
    (tmp_path / "folder.svg").mkdir()
    for place in (path, tmp_path / "folder.svg", tmp_path / "nowhere" / "speed.svg"):
        assert cli.run(["bench", artifact, *SIZES, "--plot", str(place)]) == 1
        assert f"cannot draw {place}: " in capsys.readouterr().err
    assert path.read_text() == "<svg>my drawing</svg>"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.svg", "link.svg", "speed.svg", "toy"]


def test_the_plot_stays_inside_its_frame() -> None:
    results = [Result("tg", 8, depth, seconds=(1.0, 1.3)) for depth in (0, 4096, 16000)]
    root = ElementTree.fromstring(bench_plot.svg(bench_plot.chart_of(results), "a < b"))
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert bench_plot.LEFT <= float(circle.attrib["cx"]) <= bench_plot.WIDTH - bench_plot.RIGHT
        assert bench_plot.TOP <= float(circle.attrib["cy"]) <= bench_plot.HEIGHT - bench_plot.BOTTOM


def test_several_batches_are_drawn_over_their_size() -> None:
    results = [Result("tg", 8, depth, batch, (1.0,)) for depth in (0, 64) for batch in (16, 1)]
    chart = bench_plot.chart_of(results)
    assert (chart.over, chart.unit) == ("batch size", "sequences side by side")
    assert [(name, [at for at, _ in line]) for name, line in chart.lines] == [("tg8", [1, 16]), ("tg8 @ d64", [1, 16])]
    assert chart.unit in bench_plot.svg(chart, "a")
    assert [name for name, _ in bench_plot.chart_of(results[::2]).lines] == ["tg8 @ b16"]


def test_prefill_is_drawn_where_nothing_was_decoded() -> None:
    prefill, decode = Result("pp", 8, 0, seconds=(1.0,)), Result("tg", 8, 0, seconds=(1.0,))
    assert bench_plot.chart_of([prefill, decode]).lines == [("tg8", [(0, decode)])]
    assert bench_plot.chart_of([prefill]).lines == [("pp8", [(0, prefill)])]


@pytest.mark.parametrize(
    ("largest", "step"), [(1, 0.2), (5, 1), (6, 2), (100, 20), (4096, 1000), (16000, 5000), (0.03, 0.01)]
)
def test_ticks_are_round(largest: float, step: float) -> None:
    assert bench_plot.nice_step(largest) == pytest.approx(step)


@pytest.mark.isa("avx2")
@pytest.mark.skipif(runs_here() is not None, reason=str(runs_here()))
def test_an_artifact_without_costs_or_probes(capsys: pytest.CaptureFixture[str]) -> None:
    args: tuple[Any, ...] = (STORED / f"v{VERSIONS[0]}" / "model", "-p", 4, "-n", 2, "-d", "0,5", "-r", 1, "--per-op")
    out = run(capsys, *map(str, args))
    assert "Compile it again" in out
    assert [row[-4:] for row in cells(out)[2:6]] == [["–"] * 4] * 4
