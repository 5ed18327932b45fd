"""What the manifest says of levels; a kernel that is not built is named in the error."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.blame import failed_kernel
from dsv3c.compiler.core.target import Emission
from dsv3c.compiler.driver import lowering
from dsv3c.compiler.errors import Dsv3cError, NoRoomError
from dsv3c.compiler.options import CompileOptions
from dsv3c.targets.calls.elementwise import Swiglu
from dsv3c.targets.calls.spec_text import parse_spec
from dsv3c.targets.cpu import emit
from dsv3c.targets.cpu.children import JobDied
from dsv3c.targets.cpu.kernels import SPECS
from dsv3c.targets.cpu.plan import plan
from dsv3c.targets.cpu.units import ObjectUnit
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint


@pytest.fixture
def emission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Emission:
    return emitted(CompileOptions(max_tokens=8), tmp_path, monkeypatch)


def emitted(options: CompileOptions, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Emission:
    """Of a tiny model, for one level; no kernel has a body."""
    write_checkpoint(folder / "tiny", tiny_config())
    source = Checkpoint.open(folder / "tiny")
    lowered = lowering.lower(source.config, source.shapes, options, targets.get("x86"))
    monkeypatch.setattr(emit, "build", lambda spec, level: spec)
    monkeypatch.setattr(emit, "compiled_once", lambda levels, built: [ObjectUnit(LEVELS[0], (LEVELS[0],), built[0])])
    return emit.emit(plan(lowered.entries, lowered.bounds), LEVELS[:1])


@pytest.mark.parametrize(("quant", "rate"), [("float32", 1.0), ("int8", LEVELS[0].rebuild_rate)])
def test_integer_products_rebuild_for_shorter_steps(
    quant: str, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (level,) = emitted(CompileOptions(quant=quant, max_tokens=64), tmp_path, monkeypatch).levels
    equal = lowering.materialize_from(Checkpoint.open(tmp_path / "tiny").config)
    assert level.get("prefill_min_tokens", equal) == pytest.approx(equal / rate, abs=1)


def dies(functions: Mapping[str, Any], already: Path) -> None:
    os._exit(3)


def lacks_room(functions: Mapping[str, Any], already: Path) -> None:
    raise NoRoomError(path="x", reason="full")


def dies_once(functions: Mapping[str, Any], already: Path) -> None:
    """As where something else ends the process."""
    if not already.exists():
        already.touch()
        os._exit(3)


@pytest.mark.parametrize(
    ("does", "error", "found"), [(dies, JobDied, True), (lacks_room, NoRoomError, False), (dies_once, JobDied, False)]
)
def test_the_kernel_that_ends_the_process_each_time_is_named(
    does: Callable[[Mapping[str, Any], Path], None],
    error: type[Dsv3cError],
    found: bool,
    emission: Emission,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def compile_object(functions: Mapping[str, Any], level: object, path: Path) -> None:
        if any(isinstance(spec, Swiglu) for spec in functions.values()):
            does(functions, tmp_path / "already")
        path.touch()

    monkeypatch.setattr(emit, "compile_object", compile_object)
    with pytest.raises(error) as caught:
        emission.write_kernels(tmp_path / "kernels", lambda count: None)
    kernel = failed_kernel(caught.value)
    assert (kernel is not None) is found
    if kernel is not None:
        assert kernel.level == LEVELS[0].name
        assert isinstance(parse_spec(kernel.spec, SPECS), Swiglu)
