"""Which of the collected tests are run here, and a line for each reason that others are not.

A test states what not every machine has: `@pytest.mark.needs("nvcc")`, a fixture of that name, or
`@pytest.mark.isa("avx512f")`. What repeats what other tests have shown, at further sizes, formats and levels, is marked
`thorough`, for `make test-all`. Tests left out are not collected, so that the skips of a report are those that a test
found out about only while it ran.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.runtime.devices.cpu.features import cpu_flags, permitted
from dsv3c.targets.link.platforms import ARM_LINUX, ARM_MACOS, Platform, find_compiler_for


@dataclass(frozen=True)
class Need:
    """here(): whether this machine has it. what: it in words. how: how such tests come to be run."""

    here: Callable[[], bool]
    what: str
    how: str


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _shader_compiler() -> bool:
    return any(map(shutil.which, ("glslc", "glslangValidator")))


def _knows_matrices() -> bool:
    from dsv3c.targets.vulkan.spirv import find_matrix_compiler

    return find_matrix_compiler() is not None


def _knows_dots() -> bool:
    from dsv3c.targets.vulkan.spirv import find_dot_compiler

    return find_dot_compiler() is not None


def _vulkan_package() -> bool:
    try:
        import vulkan  # noqa: F401
    except (ImportError, OSError):  # the second without the loader that the package opens
        return False
    return True


def _vulkan_device() -> bool:
    from dsv3c.runtime.devices.vulkan.instance import Instance
    from dsv3c.runtime.errors import RuntimeFault

    try:
        instance = Instance()
    except RuntimeFault:
        return False
    try:
        return bool(instance.choose(None))
    except RuntimeFault:
        return False
    finally:
        instance.close()


def _nvrtc() -> bool:
    from dsv3c.targets.cuda.toolchains import NoCudaCompiler, find_nvrtc

    try:
        return bool(find_nvrtc())
    except NoCudaCompiler:
        return False


def _cuda_compiler() -> bool:
    return _nvrtc() or shutil.which("nvcc") is not None


def _nvidia_gpu() -> bool:
    from dsv3c.runtime.errors import RuntimeFault
    from tests.targets.cuda.card import Card

    try:
        Card().close()
    except RuntimeFault:
        return False
    return True


def _browser() -> bool:
    return all(map(shutil.which, ("chromium", "chromedriver"))) and find_spec("selenium") is not None


def _mounts() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/proc"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, capture_output=True, check=False).returncode


def _emulated_arm() -> bool:
    from tests.targets.arm import emulator

    return emulator.is_there()


def _links(platform: Platform) -> Callable[[], bool]:
    def found() -> bool:
        try:
            return bool(find_compiler_for(platform))
        except Dsv3cError:
            return False

    return found


NEEDS = {
    "vulkan": Need(_vulkan_device, "a Vulkan device (Mesa's lavapipe will do)", "make test-vulkan"),
    "vulkan_package": Need(_vulkan_package, "the package vulkan and Vulkan's loader", "make test-vulkan"),
    "glslc": Need(_program("glslc"), "glslc", "make test-vulkan"),
    "glslangValidator": Need(_program("glslangValidator"), "glslangValidator", "make test-vulkan"),
    "shader_compiler": Need(_shader_compiler, "a shader compiler", "make test-vulkan"),
    "matrix_compiler": Need(_knows_matrices, "a shader compiler that knows cooperative matrices", "make test-vulkan"),
    "dots_compiler": Need(_knows_dots, "a shader compiler that knows integer dot products", "make test-vulkan"),
    "spirv_val": Need(_program("spirv-val"), "spirv-val", "make test-vulkan"),
    "arm": Need(_emulated_arm, "an emulated ARM system", "make test-arm"),
    "arm_linker": Need(_links(ARM_LINUX), "a linker for ARM", "pip install 'dsv3c[arm]'"),
    "mac_linker": Need(_links(ARM_MACOS), "a linker for macOS", "pip install 'dsv3c[arm]'"),
    "ziglang": Need(lambda: find_spec("ziglang") is not None, "ziglang", "pip install 'dsv3c[arm]'"),
    "gpp": Need(
        _program("g++"), "g++, which compiles GPU kernels for the CPU and reads the C header", "apt-get install g++"
    ),
    "nvcc": Need(_program("nvcc"), "nvcc", "install NVIDIA's CUDA toolkit"),
    "nvrtc": Need(_nvrtc, "NVRTC with nvFatbin", "pip install 'dsv3c[cuda]'"),
    "cuda_compiler": Need(_cuda_compiler, "nvcc or NVRTC", "pip install 'dsv3c[cuda]'"),
    "card": Need(_nvidia_gpu, "an NVIDIA GPU", "python -m pytest tests/targets/cuda/test_card.py"),
    "macos": Need(lambda: sys.platform == "darwin", "macOS with Metal", "tests/device/run_on_mac.sh"),
    "chromium": Need(_browser, "Chromium and its driver", "make browser"),
    "binutils": Need(lambda: all(map(shutil.which, ("nm", "objdump"))), "nm and objdump", "apt-get install binutils"),
    "curl": Need(_program("curl"), "curl", "apt-get install curl"),
    "tar": Need(_program("tar"), "tar, which unpacks archives for devices", "apt-get install tar"),
    "ldd": Need(_program("ldd"), "ldd", "apt-get install libc-bin"),
    "mounts": Need(_mounts, "unshare, and the right to mount", "apt-get install util-linux"),
    "qemu_x86": Need(_program("qemu-x86_64-static"), "an emulated Haswell", "apt-get install qemu-user-static"),
}
# Files of half a minute and more: they begin first, since one that began last would be waited for by all others.
LONG = (
    "targets/cpu/test_relax_module.py",
    "targets/metal/test_device.py",
    "targets/metal/test_kernels.py",
    "targets/cuda/test_kernels.py",
    "targets/cuda/test_mma.py",
    "targets/cuda/test_mma_attention.py",
    "targets/cuda/test_binaries.py",
    "targets/vulkan/test_kernels.py",
    "targets/vulkan/test_cooperative.py",
    "targets/vulkan/test_bundled_model.py",
    "targets/arm/test_kernels.py",
    "targets/arm/test_bundled_model.py",
    "targets/arm/test_members.py",
    "targets/cpu/test_amx_kernels.py",
    "targets/cpu/test_attention_kernels.py",
    "targets/cpu/native/test_native_program.py",
    "targets/cpu/native/test_native_tokenizer.py",
    "runtime/devices/cuda/test_device.py",
    "runtime/test_installed.py",
    "compiler/cli/test_bundled_model.py",
    "tests/test_bundled_model.py",
    "tests/test_goldens_conformance.py",
)
RAN = "nothing: they passed in an earlier run"
OTHER_PART = "another part of the suite: --part"
THOROUGH = "more time, at further sizes, formats and levels: make test-all"


def shortlist(names: Iterable[str], kept: Iterable[str]) -> list[Any]:
    """Parameters of a test: those of `kept` always, the others when everything is run."""
    kept = tuple(kept)
    return [name if name in kept else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def selected(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What the tests of the requesting file that are run have for their parameter `name`."""
    calls = [item.callspec for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return tuple(dict.fromkeys(call.params["name"] for call in calls if "name" in call.params))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run what is marked `thorough`, too")
    parser.addoption("--record", type=Path, metavar="FILE", help="write the names of tests that passed")
    parser.addoption("--except", type=Path, metavar="FILE", help="leave out the tests of such a file")
    parser.addoption("--part", type=parse_part, metavar="K/N", help="run the Kth of N parts of what is left, from 1")


def parse_part(text: str) -> tuple[int, int]:
    """(K, N) of the text K/N. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N")
    return int(match[1]), int(match[2])


def part_of(files: Sequence[str], parts: int) -> list[int]:
    """The part, from 1, that each test belongs to, by the names of their files, in order.

    Neighbours of one file, which share fixtures, stay together; each file begins with another part.
    """
    sizes, seen, chosen = Counter(files), Counter[str](), list[int]()
    for file in files:
        chosen.append(1 + (crc32(file.encode()) + seen[file] * parts // sizes[file]) % parts)
        seen[file] += 1
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    passed = config.getoption("--except")
    done = frozenset(passed.read_text(encoding="utf-8").splitlines()) if passed else frozenset()
    reasons = {item: RAN if item.nodeid in done else _why_not(item, config.getoption("--all")) for item in items}
    if part := config.getoption("--part"):
        left = [item for item in items if not reasons[item]]
        numbers = part_of([item.nodeid.partition("::")[0] for item in left], part[1])
        reasons |= {item: OTHER_PART for item, number in zip(left, numbers, strict=True) if number != part[0]}
    left_out = Counter(reason for reason in reasons.values() if reason)
    config.hook.pytest_deselected(items=[item for item in items if reasons[item]])
    kept = [item for item in items if not reasons[item]]
    items[:] = sorted(
        kept, key=lambda item: not item.path.as_posix().endswith(LONG)
    )  # stable: the others stay as they are
    config.stash[_LEFT_OUT] = left_out


_LEFT_OUT = pytest.StashKey[Counter[str]]()


def _why_not(item: pytest.Item, everything: bool) -> str:
    """Why a test is not run, "" when it is."""
    for name in _needed(item):
        if not _is_here(name):
            return f"{NEEDS[name].what}: {NEEDS[name].how}"
    for flag in (name for mark in item.iter_markers("isa") for name in mark.args):
        if not _cpu_has(flag):
            return f"a CPU with {flag}"
    return "" if everything or item.get_closest_marker("thorough") is None else THOROUGH


@cache
def _is_here(name: str) -> bool:
    return NEEDS[name].here()


@cache
def _cpu_has(flag: str) -> bool:
    return flag in cpu_flags() and permitted((flag,))


def _needed(item: pytest.Item) -> Iterable[str]:
    marked = (name for mark in item.iter_markers("needs") for name in mark.args)
    return dict.fromkeys([*marked, *(name for name in getattr(item, "fixturenames", ()) if name in NEEDS)])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist tells the one that reports what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash.get(_LEFT_OUT, Counter()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    # Each process collects the same, so the last one's word is as good as the first one's.
    node.config.stash[_LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was run by folder, and what was not by reason."""
    if (record := config.getoption("--record")) is not None:
        names = sorted({report.nodeid for report in terminalreporter.stats.get("passed", ()) if report.when == "call"})
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text("\n".join(names) + "\n", encoding="utf-8")
    run = [report.nodeid for name in ("passed", "failed") for report in terminalreporter.stats.get(name, ())]
    folders = Counter(nodeid.partition("::")[0].rpartition("/")[0] for nodeid in run)
    terminalreporter.section("run here")
    for folder, count in sorted(folders.items()):
        terminalreporter.write_line(f"{count:6}  {folder}")
    left_out = config.stash.get(_LEFT_OUT, Counter())
    if not left_out:
        return
    terminalreporter.section("not run here")
    for reason, count in left_out.most_common():
        terminalreporter.write_line(f"{count:6}  need {reason}")
