"""Which requirements are downloaded, how, and what is said when there are none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import dsv3c.runtime
from dsv3c.compiler.cli.package import SERVER
from dsv3c.compiler.packaging import wheels


def test_the_runtimes_wheel_depends_on_its_files_alone(tmp_path: Path) -> None:
    first, second = (wheels.build_runtime(tmp_path / name) for name in ("first", "second"))
    assert first.name == f"dsv3c_runtime-{dsv3c.runtime.__version__}-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_build_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "pyproject.toml").write_text("[project]\nname = 'dsv3c runtime'\nversion = '1'\n")
    monkeypatch.setattr(wheels, "source", lambda: tmp_path / "source")
    with pytest.raises(wheels.WheelNotBuiltError, match=r"project\.name"):
        wheels.build_runtime(tmp_path / "dist")


def test_requirements_are_those_of_the_runtime() -> None:
    assert {wheels._project(line) for line in wheels.requirements("x86")} == {
        *("apache-tvm-ffi", "click", "jinja2", "numpy", "tokenizers")
    }
    assert wheels.requirements("plan9") == wheels.requirements("x86")


def test_extras_may_be_taken_along() -> None:
    base = set(wheels.requirements("x86"))
    added = {wheels._project(line) for line in wheels.requirements("x86", None, SERVER)} - set(
        map(wheels._project, base)
    )
    assert added == {"starlette", "sse-starlette", "uvicorn", "prometheus-client"}


def test_a_target_may_need_more() -> None:
    base = set(wheels.requirements("x86"))
    added = [set(wheels.requirements("onnx", provider)) - base for provider in ("cpu", "cuda", None)]
    assert [[wheels._project(line) for line in lines] for lines in added] == [
        ["onnxruntime"],
        ["onnxruntime-gpu"],
        ["onnxruntime"],
    ]


class Pip:
    """Stands for tools.run: keeps the command lines and answers as told."""

    def __init__(self, stderr: str = "") -> None:
        self.commands: list[list[str]] = []
        self.stderr = stderr

    def __call__(self, command: list[str], *_: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, bool(self.stderr), "", self.stderr)


def test_download_asks_for_the_devices_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(wheels.tools, "run", pip)
    assert wheels.download(tmp_path, ["numpy>=1.26", "tokenizers>=0.20"], ["manylinux_2_28_aarch64"], "3.12") == []
    for command in pip.commands:
        assert {"--only-binary=:all:", "--platform=manylinux_2_28_aarch64", "--python-version=3.12"} <= set(command)
    (first, alone) = pip.commands
    assert first[-1] == "numpy>=1.26" and "--no-deps" not in first
    assert alone[-1] == "tokenizers>=0.20" and "--no-deps" in alone


def test_no_wheels_is_an_error_with_pips_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels.tools, "run", Pip("WARNING: x\nERROR: No matching distribution found for numpy\n\n"))
    with pytest.raises(wheels.WheelsUnavailableError, match=r"Python 3\.12 on tag: ERROR: No matching .* for numpy\n"):
        wheels.download(tmp_path, ["numpy"], ["tag"], "3.12")


def test_a_wheel_names_its_requirement() -> None:
    assert wheels.requirement_of("numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl") == "numpy==2.4.6"
