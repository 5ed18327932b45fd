"""What this machine lacks to compile for a target. Looks; imports and starts nothing heavy."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c import targets
from dsv3c.runtime.measure.machine import package_version
from dsv3c.targets.cuda.toolchains import NoCudaCompiler, find_toolchain
from dsv3c.targets.link.platforms import (
    ARM_LINUX,
    ARM_MACOS,
    NoCCompiler,
    NoCrossCompiler,
    Platform,
    find_compiler_for,
)

if TYPE_CHECKING:
    from dsv3c.targets.cpu.isa import IsaLevel

QUERY_SECONDS = 5.0  # a driver that hangs must not hang the report

PACKAGES = (
    "dsv3c", "apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "safetensors", "tokenizers", "jinja2", "onnx",
    "onnxruntime-gpu", "onnxruntime", "click", "ziglang", "torch", "transformers",
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """Something that compiling for a target, or running what was compiled, takes.

    find: says what was found, or None. use: what it is for. get: how to come by it.
    """

    name: str
    find: Callable[[], str | None]
    use: str
    get: str


@dataclass(frozen=True)
class Readiness:
    """missing: the needs of a target that this machine does not meet."""

    target: str
    missing: tuple[Need, ...]


def levels(features: frozenset[str]) -> list[IsaLevel]:
    """The kernel levels of ours that a CPU with these features runs, the best first."""
    from dsv3c.targets.arm.levels import LEVELS as ARM
    from dsv3c.targets.x86.levels import LEVELS as X86

    return [level for levels in (X86, ARM) for level in reversed(levels) if not level.missing(features)]


def tools() -> list[Need]:
    """Programs and libraries outside of Python packages."""
    return [need for need in NEEDS.values() if not need.name.startswith("apache-")]


def readiness() -> Iterator[Readiness]:
    """What each known target still needs on this machine."""
    for name, entry in targets.available().items():
        needs = (NEEDS[need] for need in entry.needs)
        yield Readiness(name, tuple(need for need in needs if need.find() is None))


def _program(*names: str) -> Callable[[], str | None]:
    """Finds the first of some programs on the path."""
    return lambda: next((path for name in names if (path := shutil.which(name))), None)


def _package(name: str) -> Callable[[], str | None]:
    return lambda: package_version(name)


def _compiler() -> str | None:
    """The program that links kernels: the C compiler of the system, else ziglang."""
    chosen = os.environ.get("CC", "").split()[:1]
    path = _program(*chosen, "cc", "gcc", "clang")()
    if path:
        return f"{path}{_first_line(path, '--version')}"
    zig = package_version("ziglang")
    return f"ziglang {zig}" if zig else None


def _linker(platform: Platform) -> str | None:
    """What links for a system: a native compiler on such a machine, else ziglang, else a cross compiler."""
    try:
        prefix = find_compiler_for(platform)
    except (NoCCompiler, NoCrossCompiler):
        return None
    return " ".join(prefix) if "ziglang" not in prefix else f"ziglang {package_version('ziglang')}"


def _cuda_compiler() -> str | None:
    """Path of nvcc of a toolkit, else of the NVRTC of PyPI."""
    try:
        return str(find_toolchain().path)
    except NoCudaCompiler:
        return None


def _nvidia() -> str | None:
    path = shutil.which("nvidia-smi")
    return _first_line(path, "-L").strip(" ()") or None if path else None


def _vulkan_driver() -> str | None:
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    if named:
        return named
    folders = ("/etc/vulkan/icd.d", "/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
    found = sorted(path.name for folder in folders for path in Path(folder).glob("*.json"))
    return ", ".join(found) or None


def _first_line(*command: str) -> str:
    """The first line that a program prints, in parentheses; "" when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=QUERY_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    line = done.stdout.strip().partition("\n")[0]
    return f" ({line})" if line else ""


NEEDS: Mapping[str, Need] = {
    need.name: need
    for need in (
        Need("apache-tvm", _package("apache-tvm"), "compiles kernels", "pip install apache-tvm==0.27.0.post1"),
        Need("apache-tvm-ffi", _package("apache-tvm-ffi"), "calls kernels", "pip install 'apache-tvm-ffi<0.1.15'"),
        Need("onnx", _package("onnx"), "writes ONNX graphs", "pip install 'onnx>=1.18'"),
        Need("c-compiler", _compiler, "links kernel libraries", "install gcc or clang, or pip install ziglang"),
        Need("ziglang", _package("ziglang"), "links for other systems", "pip install ziglang"),
        Need(
            "arm-linker",
            partial(_linker, ARM_LINUX),
            "links kernel libraries for ARM",
            "pip install 'dsv3c[arm]', or install gcc-aarch64-linux-gnu",
        ),
        Need(
            "macos-linker",
            partial(_linker, ARM_MACOS),
            "links kernel libraries for macOS",
            "pip install 'dsv3c[arm]', which brings ziglang",
        ),
        Need(
            "cuda-compiler",
            _cuda_compiler,
            "compiles CUDA kernels",
            "install the CUDA toolkit, or pip install 'dsv3c[cuda]'",
        ),
        Need("nvidia-gpu", _nvidia, "runs CUDA kernels", "install the NVIDIA driver"),
        Need(
            "glslc",
            _program("glslc", "glslangValidator"),
            "compiles Vulkan kernels",
            "install glslc, or glslang-tools (Debian packages)",
        ),
        Need("spirv-val", _program("spirv-val"), "checks Vulkan kernels", "install spirv-tools"),
        Need(
            "vulkan-loader",
            lambda: ctypes.util.find_library("vulkan"),
            "runs Vulkan kernels",
            "install the Vulkan loader (Debian package libvulkan1)",
        ),
        Need("vulkan-driver", _vulkan_driver, "runs Vulkan kernels", "install a Vulkan driver (mesa-vulkan-drivers)"),
        Need(
            "qemu-aarch64",
            _program("qemu-aarch64-static", "qemu-aarch64"),
            "tries ARM kernels on this machine",
            "install qemu-user-static",
        ),
    )
}
