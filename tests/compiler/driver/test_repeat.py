"""A compilation that fails in a pass or a kernel prints a command that fails in the same way, and in nothing else."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dsv3c.compiler import cli, kernel, opt
from dsv3c.compiler.core.ir import Graph, parse_graph
from dsv3c.compiler.driver import lowering, repeat
from dsv3c.compiler.errors import BadOptionError
from dsv3c.compiler.options import CompileOptions
from dsv3c.passes.quantise import Quantise
from dsv3c.passes.simplify import Simplify
from dsv3c.targets.calls.elementwise import Swiglu
from dsv3c.targets.cpu import kernels as cpu_kernels
from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.x86 import levels
from tests.checkpoints import tiny_config, write_checkpoint
from tests.passes.evaluation import graph

# What a broken compiler is like: read by every Python that starts, before anything of ours.
BROKEN = """
from dsv3c.passes.fuse_mla import FuseMla
def run(self, graph):
    raise KeyError("fuse-mla as " + self.form)
FuseMla.run = run
"""
COMPILE = "import sys; from dsv3c.compiler.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and a folder of its own for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    write_checkpoint(tmp_path / "tiny", tiny_config())
    return tmp_path / "tiny"


def command_in(err: str) -> str:
    """The command that is printed, on the last line."""
    *_, last = err.splitlines()
    assert last.startswith("  to repeat it: ")
    return last.removeprefix("  to repeat it: ")


def test_the_command_can_be_pasted_anywhere(tiny: Path, tmp_path: Path) -> None:
    broken, out, elsewhere = tmp_path / "broken", tmp_path / "out", tmp_path / "else where"
    for folder in (broken, elsewhere):
        folder.mkdir()
    (broken / "sitecustomize.py").write_text(BROKEN, encoding="utf-8")
    environment = os.environ | {"TMPDIR": str(elsewhere), "PYTHONPATH": str(broken)}
    command = [sys.executable, "-c", COMPILE, "compile", str(tiny), "-o", str(out), "--max-tokens", "48"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, out.exists()) == (1, False), done.stderr
    assert "KeyError: 'fuse-mla as absorbed'" in done.stderr
    repeated = command_in(done.stderr)
    again = subprocess.run(
        repeated, shell=True, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1 and "KeyError: 'fuse-mla as absorbed'" in again.stderr
    assert "to repeat it" not in again.stderr


def test_the_command_for_a_graph_that_is_refused_repeats_that(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Quantise, graph: Graph) -> tuple[Graph, int]:
        (name, value), *_ = graph.results
        return Graph(graph.name, ((name, replace(value, type=replace(value.type, dtype="i8"))),)), 1

    said = "the graph is wrong after quantise: the type should be "
    with monkeypatch.context() as patch:
        patch.setattr(Quantise, "run", run)
        assert cli.run(["compile", str(tiny), "-o", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert said in err and not (tmp_path / "out").exists()
        _, _, module, *arguments = shlex.split(command_in(err))
        assert module == "dsv3c.compiler.opt"
        assert opt.run(arguments) == 1
        assert said in capsys.readouterr().err
    assert opt.run(arguments) == 0  # when the pass is mended
    assert parse_graph(capsys.readouterr().out).count("quantize") > 0


def test_the_command_for_a_kernel_builds_that_kernel(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(spec: Swiglu, level: IsaLevel) -> None:
        raise ValueError(f"no swiglu of {spec.d} for {level.name}")

    with monkeypatch.context() as patch:
        patch.setitem(cpu_kernels._KERNELS, Swiglu, (cpu_kernels._KERNELS[Swiglu][0], build))
        patch.setattr(levels, "LEVELS", levels.LEVELS[1:2])
        assert cli.run(["compile", str(tiny), "-o", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        said = next(line for line in err.splitlines() if "ValueError: no swiglu of " in line)
        assert f"for {levels.LEVELS[0].name}" in said and not (tmp_path / "out").exists()
        _, _, module, *arguments = shlex.split(command_in(err))
        assert module == "dsv3c.compiler.kernel"
        assert kernel.run(arguments) == 1
        assert said in capsys.readouterr().err
    assert kernel.run(arguments) == 0
    assert "kernel.o" in capsys.readouterr().out


def test_options_of_the_pass_and_the_target_are_in_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(ValueError, match="x") as caught,
        repeat.telling_pass(Quantise("int4-g32", "int8", "bfloat16"), SMALL, "vulkan:binding=64"),
    ):
        raise ValueError("x")
    (note,) = caught.value.__notes__
    (dump,) = tmp_path.glob("*/g-before-quantise.txt")
    options = "--pass quantise:weights=int4-g32,head=int8,embedding=bfloat16 --target vulkan:binding=64"
    assert note == f"to repeat it: {sys.executable} -m dsv3c.compiler.opt {dump} {options}"


SMALL: Graph = graph("  %x: f32[T, 4] = input()\n  return y=%x")


def test_a_fault_of_what_was_given_has_no_command() -> None:
    with pytest.raises(BadOptionError) as caught, repeat.telling_pass(Simplify(), SMALL, "x86"):
        raise BadOptionError(option="a", value="b", expected="c")
    assert not hasattr(caught.value, "__notes__")


def test_a_disk_without_room_for_the_dump_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)

    class Breaks(Simplify):
        def run(self, graph: Graph) -> tuple[Graph, int]:
            raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        lowering.run_passes(SMALL, [Breaks()], CompileOptions())
