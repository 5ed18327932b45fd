"""`python -m dsv3c.compiler.kernel`: one kernel, built as a compilation builds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.compiler import kernel

SWIGLU = "Swiglu(rows=Rows(bound=18), d=37)"


def test_a_kernel_is_built_for_the_lowest_level_or_the_one_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV3C_DEBUG", "4")
    for level, options in (("x86-64-v3", []), ("x86-64-v4", ["--level", "x86-64-v4"])):
        assert kernel.run([SWIGLU, *options, "-o", str(tmp_path / level)]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines()[1].startswith("kernel.o ")
        assert captured.err.startswith(f"# {level}\n")
        assert [path.name for path in (tmp_path / level).iterdir()] == ["kernel.o"]


def test_all_forms_of_a_gpus_kernel_are_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv3c.targets.metal.msl.link_library", lambda data, path: path)
    assert kernel.run(["MlaAbsorbed(Rows(18), 2, Paging(2, 20, 16, 64, 16, 'bf16'), 0.1)", "--target", "metal"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(names) >= 2 and all(name.endswith(".metal") for name in names)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["Swiglu(d=37)"], 1, "names no kernel"),
        ([SWIGLU, "--level", "x86-64-v9"], 1, "no level 'x86-64-v9'; its levels are x86-64-v3"),
        pytest.param(
            [SWIGLU, "--level", "sm_80", "--target", "vulkan"],
            1,
            "no level 'sm_80'; its levels are none",
            marks=pytest.mark.needs("shader_compiler"),
        ),
        ([SWIGLU, "--target", "onnx"], 2, "onnx has no kernels of its own"),
        ([SWIGLU, "--target", "abacus"], 2, "unknown target 'abacus'"),
    ],
)
def test_what_cannot_be_built_is_told(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernel.run(arguments) == code
    assert message in capsys.readouterr().err


def test_a_folder_is_made_when_the_kernel_is_there_and_none_is_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernel.run(["Swiglu(d=37)", "-o", str(tmp_path / "new")]) == 1
    assert list(tmp_path.iterdir()) == []
    assert kernel.run([SWIGLU, "-o", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
