"""The runtime's own command line: the commands of `dsv3c` that need no compiler, on an artifact of the tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dsv3c.runtime
from dsv3c.compiler import cli as compiler_cli
from dsv3c.compiler.cli.program import root as compiler_root
from dsv3c.runtime import cli
from dsv3c.runtime.cli.program import root
from tests.runtime.test_stored_artifacts import STORED, VERSIONS, runs_here

ARTIFACT = STORED / f"v{VERSIONS[-1]}" / "model"


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> tuple[str, str]:
    """stdout and stderr."""
    assert cli.run([str(arg) for arg in args]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


@pytest.mark.parametrize("command", sorted(root.commands))
def test_help_names_the_program_that_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, command, "--help")
    assert f"Usage: dsv3c-runtime {command}" in out
    assert "PROGRAM" not in out and " dsv3c " not in out.replace("`dsv3c ", "")
    assert compiler_cli.run([command, "--help"]) == 0
    help_of_compiler = capsys.readouterr().out
    assert "PROGRAM" not in help_of_compiler and "dsv3c-runtime" not in help_of_compiler


def test_commands_are_those_of_the_compiler() -> None:
    """One way to do a thing: nothing of the runtime's is missing there, and what needs no compiler is the same."""
    shared = {name for name, command in root.commands.items() if compiler_root.commands[name] is command}
    assert {"generate", "bench", "verify"} <= shared


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", ARTIFACT)[0].startswith(f"{ARTIFACT}: ok, ")
    assert json.loads(run(capsys, "verify", ARTIFACT, "--json")[0])["extra"] == []
    shutil.copytree(ARTIFACT, tmp_path / "copy")
    weights = tmp_path / "copy" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "weights.safetensors" in run(capsys, "verify", tmp_path / "copy", code=1)[1]


def test_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "inspect", ARTIFACT, "--json")[0])["kind"] == "artifact"
    assert "kernel calls of decode" in run(capsys, "inspect", ARTIFACT)[0]


def test_inspect_shows_what_caches_hold(capsys: pytest.CaptureFixture[str]) -> None:
    caches = json.loads(run(capsys, "inspect", ARTIFACT, "--json")[0])["caches"]
    plain = {"dtype": "bfloat16", "width": 40, "codes": "", "bytes_per_token": 80}
    assert caches[3] == {"name": "cache.3", **plain}
    wanted = "320 B a token, 512 tokens a sequence at most: 4 of 40 x bfloat16"
    assert wanted in run(capsys, "inspect", ARTIFACT)[0]


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_no_artifact_is_1(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = run(capsys, command, tmp_path / "missing", code=1)
    assert error.startswith("error: ") and "it does not exist" in error


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Usage: dsv3c-runtime" in run(capsys, "generate", "OUT", code=2)[1]
    for wrong in (["-p", "a", "--ids", "1"], ["--ids", "one"], ["--ids", "-1"], ["--chat", "--ids", "1"]):
        assert "Usage: dsv3c-runtime" in run(capsys, "generate", "OUT", *wrong, code=2)[1]
    for wrong in (["-p", "a", "--chat"], ["--ids", "1"]):
        assert "--no-bos is for plain prompts" in run(capsys, "generate", "OUT", "--no-bos", *wrong, code=2)[1]
    assert "No such command 'compile'" in run(capsys, "compile", code=2)[1]


def test_an_unforeseen_fault_is_told_as_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path, progress: object) -> None:
        raise ValueError("odd")

    monkeypatch.delenv("DSV3C_DEBUG", raising=False)
    monkeypatch.setattr("dsv3c.runtime.artifact.artifact.verify", fail)
    assert run(capsys, "verify", ARTIFACT, code=1)[1].startswith("error: ValueError: odd\n  hint: this is a fault of")


@pytest.mark.isa("avx2")
@pytest.mark.skipif(runs_here() is not None, reason=str(runs_here()))
def test_as_a_module_it_generates_without_the_compiler() -> None:
    command = [sys.executable, "-m", "dsv3c.runtime"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert shown == f"python -m dsv3c.runtime {dsv3c.runtime.__version__}\n"
    args = ["bench", str(ARTIFACT), "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-o", "json"]
    done = subprocess.run([*command, *args], capture_output=True, text=True, check=True)
    assert [test["test"] for test in json.loads(done.stdout)["tests"]] == ["pp4", "tg2"]
