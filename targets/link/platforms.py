"""Systems that kernel libraries are built for, and the compiler driver that links for each on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform as host
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.compiler.tools import run

GLIBC = Path(__file__).with_name("glibc.h")
_COMPILERS = ("cc", "gcc", "clang")


@dataclass(frozen=True)
class Platform:
    """triple: what LLVM is told. system: as `sys.platform` names it; machines: names that `platform.machine` gives.
    zig: its `-target`. gcc: the cross compiler of Debian and others, "" where there is none. shared: what the linker is
    told besides `-shared`, with {name} for the library's file name. suffix: of that name."""

    triple: str
    system: str
    machines: tuple[str, ...]
    zig: str
    gcc: str = ""
    shared: tuple[str, ...] = ()
    suffix: str = ".so"

    @property
    def is_this(self) -> bool:
        """Whether this machine can run what is built for it."""
        return sys.platform == self.system and host.machine().lower() in self.machines


# The runtime's packages need glibc 2.28 on ARM themselves.
ARM_LINUX = Platform(
    triple="aarch64-linux-gnu",
    system="linux",
    machines=("aarch64", "arm64"),
    zig="aarch64-linux-gnu.2.28",
    gcc="aarch64-linux-gnu-gcc",
    shared=("-Wl,--strip-debug",),  # ziglang writes tables with this machine's paths
)
# Symbols of TVM are found when the library is loaded, as in ELF.
ARM_MACOS = Platform(
    triple="arm64-apple-macos",
    system="darwin",
    machines=("arm64", "aarch64"),
    zig="aarch64-macos.11.0",
    shared=("-undefined", "dynamic_lookup", "-Wl,-install_name,@rpath/{name}", "-Wl,-S"),
    suffix=".dylib",
)


class LinkFailed(Dsv3cError):
    message = "linking {path} failed: {command}\n{output}"
    hint = "check that the C compiler works and has its C library headers (Debian: apt-get install libc6-dev)"


class NoCCompiler(Dsv3cError):
    message = "no C compiler found: tried $CC, {tried} and the Python package ziglang"
    hint = "install one (Debian: apt-get install gcc; anywhere: pip install ziglang) or set CC to its path"


class NoCrossCompiler(Dsv3cError):
    message = "nothing on this machine links for {triple}: tried {tried}"
    hint = "pip install 'dsv3c[arm]', which brings ziglang{or_gcc}"


def find_c_compiler() -> list[str]:
    """The command line prefix of a C compiler: $CC, cc, gcc, clang, then `python -m ziglang cc`. Raises NoCCompiler."""
    chosen = os.environ.get("CC", "").split()
    if chosen and shutil.which(chosen[0]):
        return chosen
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return _zig()
    raise NoCCompiler(tried=", ".join(_COMPILERS))


def find_compiler_for(platform: Platform | None) -> list[str]:
    """As find_c_compiler, for `platform`; None is this machine. Raises NoCCompiler, NoCrossCompiler.

    Where it cannot be native, ziglang comes first: its libraries need the C library that `zig` names, whereas those of
    a distribution's cross compiler need the distribution's.
    """
    if platform is None or platform.is_this:
        return find_c_compiler()
    if importlib.util.find_spec("ziglang"):
        return [*_zig(), "-target", platform.zig]
    if platform.gcc and (path := shutil.which(platform.gcc)):
        return [path]
    tried = " and ".join(["the Python package ziglang", *([platform.gcc] if platform.gcc else [])])
    or_gcc = f" (Debian also has the package gcc-{platform.triple})" if platform.gcc else ""
    raise NoCrossCompiler(triple=platform.triple, tried=tried, or_gcc=or_gcc)


def old_glibc(platform: Platform | None, compiler: list[str]) -> list[str]:
    """What a compiler of this machine is told so that what it links needs no newer glibc than 2.28; nothing where
    that isn't glibc on x86-64, the one whose old symbols glibc.h names. For other platforms zig is told by its target.
    """
    if platform is not None or sys.platform != "linux" or host.machine().lower() not in ("x86_64", "amd64"):
        return []
    if "ziglang" in compiler:
        return [] if "-target" in compiler else ["-target", "x86_64-linux-gnu.2.28"]
    if host.libc_ver()[0] != "glibc":
        return []
    # What was theirs is in libc since 2.34; older systems look for it where it was.
    parts = [f"-l:{name}" for name in ("libpthread.so.0", "libdl.so.2") if _has(compiler, name)]
    return ["-include", str(GLIBC), "-Wl,--no-as-needed", *parts, "-Wl,--as-needed"]


def _has(compiler: list[str], library: str) -> bool:
    command = [*compiler, f"-print-file-name={library}"]
    return os.path.isabs(run(command, Path(library)).stdout.strip())


def _zig() -> list[str]:
    return [sys.executable, "-m", "ziglang", "cc"]
