"""The compilers of CUDA C++: nvcc of a toolkit, else NVIDIA's NVRTC library, which PyPI has.

Neither needs a GPU. nvcc makes PTX once, which ptxas turns into machine code for each architecture; NVRTC compiles the
text for each.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.cuda.architectures import DEFAULT, UnknownArchitecture

_LIBRARIES = ("libnvrtc.so*", "nvrtc64_*.dll")


class NoCudaCompiler(Dsv3cError):
    message = "neither nvcc nor NVRTC was found; one of them compiles CUDA kernels"
    hint = "install the CUDA toolkit, or pip install 'dsv3c[cuda]'"


class CudaRefused(Dsv3cError):
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

    def ptx(self, text: str, architecture: str) -> bytes:
        """PTX of CUDA C++ for compute_XX. Raises CudaRefused."""

    def cubin(self, text: str, ptx: bytes, architecture: str) -> bytes:
        """Machine code for sm_XX, of the text or of the PTX made of it. Raises CudaRefused."""


def find_toolchain() -> Toolchain:
    """Raises NoCudaCompiler."""
    program = shutil.which("nvcc")
    if program is not None:
        return Nvcc(Path(program))
    library = find_nvrtc()
    if library is None:
        raise NoCudaCompiler()
    return Nvrtc(library)


def find_nvrtc() -> Path | None:
    """The library of the package nvidia-cuda-nvrtc, which brings the one of built-in functions with it."""
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        folders = list(spec.submodule_search_locations or []) if spec else []
        for folder in folders:
            found = [
                path
                for pattern in _LIBRARIES
                for path in sorted(Path(folder).glob(f"*/**/{pattern}"))
                if "builtins" not in path.name and ".alt." not in path.name
            ]
            if found:
                return found[0]
    return None


def _chosen(wanted: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    for name in wanted:
        if name not in known:
            raise UnknownArchitecture(name=name, known=", ".join(known))
    return tuple(wanted) or tuple(name for name in DEFAULT if name in known)


@dataclass(frozen=True)
class Nvcc:
    """path: of the program."""

    path: Path

    @cached_property
    def version(self) -> str:
        words = self._run(["--version"], "itself").decode(errors="replace").split()
        return f"nvcc {next((word[1:] for word in words if word.startswith('V')), 'of unknown version')}"

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        return _chosen(wanted, self._run(["--list-gpu-code"], "itself").decode().split())

    def ptx(self, text: str, architecture: str) -> bytes:
        return self._compile(text.encode(), ".cu", ["-std=c++17", "-ptx"], architecture)

    def cubin(self, text: str, ptx: bytes, architecture: str) -> bytes:
        return self._compile(ptx, ".ptx", ["-cubin"], architecture)

    def _compile(self, content: bytes, suffix: str, options: Sequence[str], architecture: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, f"kernels{suffix}"), Path(folder, "made")
            given.write_bytes(content)
            # TVM declares shared memory also where a kernel uses none: warning 177.
            warnings = ["-diag-suppress", "177"] if suffix == ".cu" else []
            self._run([*options, *warnings, f"-arch={architecture}", "-o", str(made), str(given)], architecture)
            return made.read_bytes()

    def _run(self, arguments: Sequence[str], architecture: str) -> bytes:
        done = subprocess.run([str(self.path), *arguments], capture_output=True, check=False)
        if done.returncode != 0:
            output = (done.stderr + done.stdout).decode(errors="replace").strip()
            raise CudaRefused(compiler=str(self.path), architecture=architecture, output=output)
        return done.stdout


@dataclass(frozen=True)
class Nvrtc:
    """path: of the library, whose functions are those of nvrtc.h."""

    path: Path

    @cached_property
    def _functions(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.path))

    @cached_property
    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"NVRTC {major.value}.{minor.value}"

    def choose(self, wanted: Sequence[str]) -> tuple[str, ...]:
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return _chosen(wanted, [f"sm_{number}" for number in numbers])

    def ptx(self, text: str, architecture: str) -> bytes:
        return self._compile(text, architecture, "PTX").rstrip(b"\0")

    def cubin(self, text: str, ptx: bytes, architecture: str) -> bytes:
        return self._compile(text, architecture, "CUBIN")

    def _compile(self, text: str, architecture: str, form: str) -> bytes:
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None)
        try:
            options = [b"--std=c++17", b"--diag-suppress=177", f"--gpu-architecture={architecture}".encode()]
            given = (ctypes.c_char_p * len(options))(*options)
            if self._functions.nvrtcCompileProgram(program, len(options), given) != 0:
                log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
                raise CudaRefused(compiler=self.version, architecture=architecture, output=log)
            return self._bytes(f"nvrtcGet{form}", program)
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _bytes(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(name, program, content)
        return content.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._functions, name)(*arguments)
        if status != 0:
            self._functions.nvrtcGetErrorString.restype = ctypes.c_char_p
            reason = self._functions.nvrtcGetErrorString(status).decode(errors="replace")
            raise CudaRefused(compiler=str(self.path), architecture=name, output=reason)
