"""`python -m dsv3c.compiler.opt`: dumps are read, passes run, and what is printed parses again."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from dsv3c import targets
from dsv3c.compiler import opt
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core import ops
from dsv3c.compiler.core.ir import Graph, Value, parse_graph
from dsv3c.compiler.driver import lowering, named_passes
from dsv3c.compiler.options import CompileOptions

SMALL = """graph g {
  %x: f32[T, 4] = input()
  %1: f32[] = const() {"data": 1.0}
  %2: f32[T, 4] = mul(%x, %1)
  return y=%2
}
"""
ENTRIES = {"decode": "absorbed", "prefill": "materialized", "mtp": "absorbed"}


@pytest.fixture(scope="module")
def dumps(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The folder with every dump of the bundled model, and the passes between them by entry, spelled."""
    folder = tmp_path_factory.mktemp("graphs")
    source, options, target = Checkpoint.open(bundled_model), CompileOptions(dump_to=folder), targets.get("x86")
    lowered = lowering.lower(source.config, source.shapes, options, target)
    return folder, {
        name: [named_passes.spelled(item) for item in lowering.passes(form, options, target, lowered.bounds)]
        for name, form in ENTRIES.items()
    }


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.txt"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_dump_and_its_pass_give_the_next_dump(
    entry: str, dumps: tuple[Path, dict[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, passes = dumps
    files = sorted(folder.glob(f"{entry}-*.txt"))
    assert len(files) == len(passes[entry]) + 1 == 14
    for before, item, after in zip(files, passes[entry], files[1:], strict=False):
        assert opt.run([str(before), "--pass", item]) == 0
        told, _, text = capsys.readouterr().out.partition("\n")
        expected_told, _, expected = after.read_text(encoding="utf-8").partition("\n")
        assert text == expected
        assert told.rpartition(" ")[0].split()[-1] == expected_told.split()[-2]  # rewrites


def test_all_passes_in_one_call_compute_what_the_traced_graph_does(
    dumps: tuple[Path, dict[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, passes = dumps
    exact = [item for item in passes["mtp"] if not item.startswith(("quantise", "pack", "plan-memory"))]
    command = [str(folder / "mtp-00-trace.txt"), "--evaluate"]
    assert opt.run([*command, *(part for item in exact for part in ("--pass", item))]) == 0
    captured = capsys.readouterr()
    assert parse_graph(captured.out) == parse_graph((folder / "mtp-10-fuse-swiglu.txt").read_text(encoding="utf-8"))
    assert [line.split()[0] for line in captured.err.splitlines()] == ["result", "logits", "hidden", "cache.4"]


def test_a_pass_that_rounds_is_found_to_differ(
    dumps: tuple[Path, dict[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(dumps[0] / "mtp-10-fuse-swiglu.txt"), "--pass", "quantise:weights=int8", "--evaluate"]
    assert opt.run(command) == 1
    captured = capsys.readouterr()
    assert "graphs before and after differ by more than 1e-05 of the largest value in logits, hidden" in captured.err
    assert parse_graph(captured.out).count("quantize") > 0
    assert opt.run([*command, "--tolerance", "0.2"]) == 0


def test_stdin_is_read_and_what_is_printed_is_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(SMALL))
    assert opt.run(["-"]) == 0
    printed = capsys.readouterr().out
    assert printed == "# g after no pass\n" + SMALL
    monkeypatch.setattr("sys.stdin", io.StringIO(printed))
    assert opt.run(["-", "--pass", "simplify"]) == 0
    assert capsys.readouterr().out == (
        "# g after simplify: 1 rewrites\ngraph g {\n  %x: f32[T, 4] = input()\n  return y=%x\n}\n"
    )


def test_it_runs_as_a_module_from_anywhere(small: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsv3c.compiler.opt", small, "--pass", "simplify"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "return y=%x" in done.stdout and done.stderr == ""


class Wrong:
    """A pass whose graph has a wrong type."""

    name: ClassVar[str] = "simplify"
    phase: ClassVar[str] = "fuse"

    def run(self, graph: Graph) -> tuple[Graph, int]:
        x = ops.leaf("input", "x", graph.values()[0].type)
        return Graph(graph.name, (("y", Value("sin", (x,), {}, ops.const(1.0).type)),)), 1


def test_graphs_are_verified_unless_one_says_no(
    small: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(named_passes, "Simplify", Wrong)
    assert opt.run([small, "--pass", "simplify"]) == 1
    captured = capsys.readouterr()
    assert "the graph is wrong after simplify: the type should be f32[T, 4]" in captured.err and captured.out == ""
    assert opt.run([small, "--pass", "simplify", "--no-verify"]) == 0
    assert "f32[] = sin(%x)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mul(%x, %1)", "mul(%x %1)", "small.txt:4 is not the dump of a graph: "),
        ("graph g {", "graph g", "small.txt:1 is not the dump of a graph: a graph reads graph NAME { lines"),
        ("y=%2", "y=%9", "small.txt:5 is not the dump of a graph: result 'y=%9' names no value"),
        ("f32[T, 4] = mul", "f32[T, 5] = mul", "small.txt is wrong: the type should be f32[T, 4]"),
        ("mul(%x, %1)", "mull(%x, %1)", "no operation is called 'mull'"),
        ("T", "Ü", "is not the dump of a graph: it is no text in UTF-8"),
    ],
)
def test_a_file_that_is_no_graph_is_told_with_the_line(
    old: str, new: str, message: str, small: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(small).write_bytes(SMALL.replace(old, new).encode("latin-1"))
    assert opt.run([small]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert "Traceback" not in captured.err and "this is a fault" not in captured.err


def test_a_missing_file_and_an_unknown_pass_are_told(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert opt.run([small + "x"]) == 1
    assert f"No such file or directory: {small}x" in capsys.readouterr().err
    wrong = {"fuse-al": "the passes are simplify, fuse-rms-norm", "fuse-mla:form=x": "'x' is none of absorbed"}
    for text, message in wrong.items():
        assert opt.run([small, "--pass", text]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
