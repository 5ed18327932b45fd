"""The platform of an artifact, and the tags of the wheels that run there."""

from __future__ import annotations

import pytest

from dsv3c.compiler.cli.package import package_command
from dsv3c.compiler.packaging import platforms
from dsv3c.compiler.packaging.platforms import PLATFORMS, WheelPlatform, platform_of
from dsv3c.runtime.artifact.artifact import ArtifactTarget, Level


def target(name: str, *files: str) -> ArtifactTarget:
    return ArtifactTarget(name, tuple(Level(f"level{i}", (), file) for i, file in enumerate(files)))


@pytest.mark.parametrize(
    ("name", "file", "platform"),
    [
        ("x86", "kernels/x86-64-v3.so", "linux-x86_64"),
        ("x86:cpu=zen4", "kernels/x86-64-v3.so", "linux-x86_64"),
        ("arm", "kernels/armv8.so", "linux-aarch64"),
        ("arm:os=macos", "kernels/armv8.dylib", "macos-arm64"),
        ("metal", "kernels/metal.dylib", "macos-arm64"),
    ],
)
def test_kernel_libraries_decide(name: str, file: str, platform: str) -> None:
    assert platform_of(target(name, file)) == PLATFORMS[platform]


def test_what_has_no_machine_runs_on_any() -> None:
    assert platform_of(target("onnx")) is None


def test_tags_name_every_c_library_that_will_do() -> None:
    tags = PLATFORMS["linux-aarch64"].tags
    assert tags[0] == "manylinux_2_28_aarch64"
    assert {"manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert not [tag for tag in tags if "x86" in tag]


def test_a_machine_without_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms, "machine", lambda: "riscv64")
    with pytest.raises(platforms.UnknownMachineError, match=r"on riscv64\n.*linux-x86_64, linux-aarch64"):
        WheelPlatform.here()


def test_help_lists_the_platforms() -> None:
    (option,) = (option for option in package_command.params if option.name == "platform")
    assert all(name in option.help for name in PLATFORMS)  # type: ignore[attr-defined]
