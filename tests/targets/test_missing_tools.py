"""Planning builds no kernel and needs no program; compiling without a needed one stops before anything is built."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3c import targets
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.cuda.toolchains import NoCudaCompiler
from dsv3c.targets.link.platforms import NoCCompiler, NoCrossCompiler
from dsv3c.targets.vulkan.spirv import NoShaderCompiler
from tests.checkpoints import tiny_config, write_checkpoint

MISSING: dict[str, type[Dsv3cError]] = {
    "x86": NoCCompiler,
    "arm": NoCrossCompiler,
    "metal": NoCrossCompiler,
    "cuda": NoCudaCompiler,
    "vulkan": NoShaderCompiler,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_checkpoint(folder, tiny_config(num_hidden_layers=2))
    return folder


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path without a program, and neither ziglang nor NVIDIA's packages."""
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name.startswith(("ziglang", "nvidia")) else find_spec(name, package)

    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("target", targets.available())
def test_planning_needs_no_program(target: str, tiny: Path) -> None:
    report = plan_checkpoint(tiny, CompileOptions(target=target, quant="int4-g32"))
    assert report.weight_bytes > 0
    assert report.arena_bytes > 0 or target == "onnx"


WITHOUT_TVM = """
import sys
from pathlib import Path
sys.modules["tvm"] = sys.modules["tvm_ffi"] = None  # importing one raises
from dsv3c import targets
from dsv3c.compiler.driver.size_report import plan_checkpoint
from dsv3c.compiler.options import CompileOptions
for target in targets.available():
    plan_checkpoint(Path(sys.argv[1]), CompileOptions(target=target, quant="int4-g32"))
    print(target)
"""


def test_planning_builds_no_kernel(tiny: Path) -> None:
    """For no target is what builds kernels even imported."""
    command = [sys.executable, "-c", WITHOUT_TVM, str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(targets.available())


@pytest.mark.usefixtures("no_programs")
@pytest.mark.parametrize("target", MISSING)
def test_compiling_without_its_program_leaves_nothing_behind(target: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(MISSING[target]):
        compile_checkpoint(tiny, tmp_path / "outputs" / "out", CompileOptions(target=target, quant="int4-g32"))
    assert not (tmp_path / "outputs").exists()
