"""The compilers of CUDA C++: nvcc of a toolkit, else NVIDIA's libraries NVRTC and nvFatbin, which PyPI has.

Neither needs a GPU. Both make a fat binary: nvcc in one call, which makes PTX once and machine code of it for each
architecture; NVRTC compiles the text for each, and nvFatbin joins what it made.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from dsv3c.compiler.errors import CompilerFault, Dsv3cError
from dsv3c.compiler.tools import run
from dsv3c.targets.cuda.architectures import DEFAULT, PTX, UnknownArchitecture, number

_NVRTC, _NVFATBIN = ("libnvrtc.so*", "nvrtc64_*.dll"), ("libnvfatbin.so*", "nvfatbin_*.dll")
# Where the packages of CUDA 13 and of CUDA 12 have the two. Those of one version go together.
_PACKAGES = (("nvidia.cu13", "nvidia.cu13"), ("nvidia.cuda_nvrtc", "nvidia.nvfatbin"))


class NoCudaCompiler(Dsv3cError):
    message = "neither nvcc nor NVRTC was found; one of them compiles CUDA kernels"
    hint = "install the CUDA toolkit, or pip install 'dsv3c[cuda]'"


class NoFatbinLibrary(NoCudaCompiler):
    message = "NVRTC was found in {path}, but not nvFatbin of the same CUDA version, which joins what it compiles"
    hint = "pip install 'dsv3c[cuda]' brings both; a CUDA toolkit needs neither"


class CudaRefused(CompilerFault):
    message = "{compiler} refuses the kernels for {architecture}:\n{output}"
    hint = "this is a mistake in dsv3c, unless the compiler is broken; DSV3C_DEBUG=4 prints the source"


class Toolchain(Protocol):
    @property
    def path(self) -> Path:
        """The program or library."""

    @property
    def version(self) -> str:
        """The compiler and its version, in words."""

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """`wanted`, or the default architectures that it knows. Raises UnknownArchitecture."""

    def fatbin(self, text: str, architectures: Sequence[str]) -> bytes:
        """A fat binary of CUDA C++, not compressed: PTX of compute_80 and a cubin for each sm_XX. Raises CudaRefused.

        The same text and architectures give the same bytes.
        """


def find_toolchain() -> Toolchain:
    """Raises NoCudaCompiler, NoFatbinLibrary."""
    program = shutil.which("nvcc")
    return find_nvrtc() if program is None else Nvcc(Path(program))


def toolchain_for_planning() -> Toolchain:
    """As `find_toolchain`; where there is none, one that knows all architectures and compiles nothing."""
    try:
        return find_toolchain()
    except NoCudaCompiler as missing:
        return Missing(missing)


def find_nvrtc() -> Nvrtc:
    """The libraries of PyPI's packages. Raises NoCudaCompiler, NoFatbinLibrary."""
    alone = None
    for compiler, joiner in _PACKAGES:
        nvrtc, nvfatbin = _library(compiler, _NVRTC), _library(joiner, _NVFATBIN)
        if nvrtc and nvfatbin:
            return Nvrtc(nvrtc, nvfatbin)
        alone = alone or nvrtc
    raise NoFatbinLibrary(path=alone) if alone else NoCudaCompiler()


def _library(package: str, patterns: Sequence[str]) -> Path | None:
    """The library in a package; NVRTC's one of built-in functions lies beside it."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [
        path
        for folder in folders
        for pattern in patterns
        for path in sorted(Path(folder).glob(f"*/**/{pattern}"))
        if "builtins" not in path.name and ".alt." not in path.name
    ]
    return found[0] if found else None


def _chosen(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for name in wanted:
        if name not in known:
            raise UnknownArchitecture(name=name, known=", ".join(known))
    return tuple(wanted) or tuple(name for name in DEFAULT if name in known)


def _named(architectures: Sequence[str]) -> str:
    return ", ".join([PTX, *architectures])


@dataclass(frozen=True)
class Missing:
    """Stands for a compiler that is not there."""

    reason: NoCudaCompiler
    path: Path = Path()
    version: str = "none"

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        return tuple(wanted) or DEFAULT

    def fatbin(self, text: str, architectures: Sequence[str]) -> bytes:
        raise self.reason


@dataclass(frozen=True)
class Nvcc:
    """path: of the program."""

    path: Path

    @cached_property
    def version(self) -> str:
        words = self._run(["--version"], "itself").split()
        return f"nvcc {next((word[1:] for word in words if word.startswith('V')), 'of unknown version')}"

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        return _chosen(wanted, self._run(["--list-gpu-code"], "itself").split())

    def fatbin(self, text: str, architectures: Sequence[str]) -> bytes:
        # TVM declares shared memory also where a kernel uses none: warning 177.
        options = ["-std=c++17", "-diag-suppress", "177", "-fatbin", "-no-compress", "--threads", "0"]
        # Below the PTX there is no making machine code of it.
        older = [name for name in architectures if number(name) < number(PTX)]
        codes = ",".join([PTX, *(name for name in architectures if name not in older)])
        options += [f"-gencode=arch={PTX},code=[{codes}]"]
        options += [f"-gencode=arch=compute_{number(name)},code={name}" for name in older]
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "kernels.cu"), Path(folder, "made")
            given.write_text(text, encoding="utf-8")
            self._run([*options, "-o", str(made), str(given)], _named(architectures))
            return made.read_bytes()

    def _run(self, arguments: Sequence[str], architecture: str) -> str:
        done = run([str(self.path), *arguments], Path(tempfile.gettempdir()))
        if done.returncode != 0:
            output = (done.stderr + done.stdout).strip()
            raise CudaRefused(compiler=str(self.path), architecture=architecture, output=output)
        return done.stdout


@dataclass(frozen=True)
class Nvrtc:
    """path: of the library, whose functions are those of nvrtc.h. nvfatbin: of the one with those of nvFatbin.h."""

    path: Path
    nvfatbin: Path

    @cached_property
    def _compiler(self) -> _Library:
        # It looks for its library of built-in functions where the system has libraries, unless that is loaded.
        for builtins in self.path.parent.glob("*nvrtc-builtins*"):
            if ".alt." not in builtins.name:
                ctypes.CDLL(str(builtins))
        return _Library(self.path, "nvrtcGetErrorString")

    @cached_property
    def version(self) -> str:
        major, minor = c_int(), c_int()
        self._compiler.call("nvrtcVersion", byref(major), byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        count = c_int()
        self._compiler.call("nvrtcGetNumSupportedArchs", byref(count))
        numbers = (c_int * count.value)()
        self._compiler.call("nvrtcGetSupportedArchs", numbers)
        return _chosen(wanted, [f"sm_{number}" for number in numbers])

    def fatbin(self, text: str, architectures: Sequence[str]) -> bytes:
        names = [PTX, *architectures]
        # It compiles outside of Python's lock, so several at once.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            images = list(pool.map(lambda name: self._compiled(text, name), names))
        return self._joined(dict(zip(names, images, strict=True)))

    def _compiled(self, text: str, architecture: str) -> bytes:
        """PTX, which ends with a zero byte, or a cubin."""
        call, program = self._compiler.call, c_void_p()
        call("nvrtcCreateProgram", byref(program), text.encode(), b"kernels.cu", 0, None, None)
        try:
            options = [b"--std=c++17", b"--diag-suppress=177", f"--gpu-architecture={architecture}".encode()]
            given = (c_char_p * len(options))(*options)
            if self._compiler.functions.nvrtcCompileProgram(program, len(options), given) != 0:
                log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
                raise CudaRefused(compiler=self.version, architecture=architecture, output=log)
            return self._bytes("nvrtcGetPTX" if architecture == PTX else "nvrtcGetCUBIN", program)
        finally:
            call("nvrtcDestroyProgram", byref(program))

    def _bytes(self, name: str, program: c_void_p) -> bytes:
        size = c_size_t()
        self._compiler.call(f"{name}Size", program, byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._compiler.call(name, program, content)
        return content.raw

    def _joined(self, images: Mapping[str, bytes]) -> bytes:
        call, handle, size = _Library(self.nvfatbin, "nvFatbinGetErrorString").call, c_void_p(), c_size_t()
        call("nvFatbinCreate", byref(handle), (c_char_p * 1)(b"-compress=false"), c_size_t(1))
        try:
            for name, image in images.items():
                given = handle, image, c_size_t(len(image)), str(number(name)).encode(), b"kernels"
                if name == PTX:
                    call("nvFatbinAddPTX", *given, b"")
                else:
                    call("nvFatbinAddCubin", *given)
            call("nvFatbinSize", handle, byref(size))
            content = ctypes.create_string_buffer(size.value)
            call("nvFatbinGet", handle, content)
            return content.raw
        finally:
            call("nvFatbinDestroy", byref(handle))


class _Library:
    """Functions that give 0, or a number that `errors` has a text for."""

    def __init__(self, path: Path, errors: str) -> None:
        self._path, self.functions = path, ctypes.CDLL(str(path))
        self._text = self.functions[errors]
        self._text.restype = c_char_p

    def call(self, name: str, *arguments: object) -> None:
        status = self.functions[name](*arguments)
        if status != 0:
            reason = f"{name}: {self._text(status).decode(errors='replace')}"
            raise CudaRefused(compiler=str(self._path), architecture="all architectures", output=reason)
