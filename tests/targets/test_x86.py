"""What the target string of x86 chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c import runtime, targets
from dsv3c.compiler.driver.pipeline import compile_checkpoint
from dsv3c.compiler.options import CompileOptions
from dsv3c.runtime.errors import IsaNotSupported
from dsv3c.targets.calls.spec_text import UnknownLevelError
from dsv3c.targets.x86 import TARGET
from dsv3c.targets.x86.levels import LEVELS
from tests.checkpoints import tiny_config, write_checkpoint
from tests.targets.cpu.unbuilt import unbuilt


@pytest.mark.parametrize("text", ["x86-64-v4", "x86-64-v3+x86-64-v4-vnni", "x86-64-v4-vnni+x86-64-v3"])
def test_kernels_are_built_for_every_level_unless_some_are_chosen(text: str) -> None:
    assert TARGET.configured({}).levels() == LEVELS
    chosen = TARGET.configured(targets.parse(f"x86:levels={text}").options).levels()
    assert [level.name for level in chosen] == sorted(text.split("+"))  # the weakest first, whatever the order


def test_an_artifact_has_the_levels_that_were_chosen_even_if_this_cpu_lacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "tiny", tiny_config())
    chosen = CompileOptions(target="x86:levels=x86-64-v4-bf16+x86-64-v4-amx", max_tokens=8)
    with unbuilt():
        report = compile_checkpoint(tmp_path / "tiny", tmp_path / "out", chosen)
    assert [level["name"] for level in report.manifest["target"]["levels"]] == ["x86-64-v4-bf16", "x86-64-v4-amx"]
    assert {path.stem for path in (tmp_path / "out/kernels").iterdir()} == {"x86-64-v4-bf16", "x86-64-v4-amx"}
    monkeypatch.setenv("DSV3C_WITHOUT", "avx512_bf16")
    with pytest.raises(IsaNotSupported, match=r"x86-64-v4-bf16 needs .*avx512_bf16.*; the artifact has x86-64-v4-bf"):
        runtime.load(tmp_path / "out")


def test_a_level_that_is_none_is_told_with_those_that_are() -> None:
    with pytest.raises(UnknownLevelError, match="no level 'avx2'; its levels are x86-64-v3, x86-64-v3-vnni"):
        TARGET.configured({"levels": "x86-64-v3+avx2"})
    with pytest.raises(UnknownLevelError, match="no level ''"):
        TARGET.configured({"levels": "x86-64-v3+"})
