"""From GLSL to SPIR-V when an artifact is made: by glslc (Google's shaderc), else by Khronos' glslangValidator.

Kernels with cooperative matrices take a program that knows them (glslang 13.1 and what is built of it), those with
integer dot products one that takes instructions by number; where the first one does not, the second may.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dsv3c.compiler.errors import CompilerFault, Dsv3cError
from dsv3c.compiler.options import debug_level
from dsv3c.compiler.tools import run
from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX, INTEGER_DOT, Capabilities
from dsv3c.targets.vulkan import dots, matrices
from dsv3c.targets.vulkan.capabilities import VULKAN
from dsv3c.targets.vulkan.glsl import print_kernel

ENVIRONMENT = "vulkan1.2"  # 1.3 would ask devices for maintenance4
SPIRV = "spirv-1.5"  # what this environment has
SUFFIX = ".spv"

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "glslc": (f"--target-env={ENVIRONMENT}", "-fshader-stage=compute", "-O", "-"),
    "glslangValidator": ("-V", "--target-env", ENVIRONMENT, "--stdin", "-S", "comp"),
}


class NoShaderCompiler(Dsv3cError):
    message = "neither {known} was found; one of them compiles Vulkan kernels"
    hint = "install glslc or glslang-tools (Debian packages), or the Vulkan SDK"


class ShaderInvalid(CompilerFault):
    message = "{program} refuses the kernel {name}:\n{output}"
    hint = "this is a mistake in dsv3c; DSV3C_DEBUG=4 prints the source"


def find_compiler() -> str:
    """The path of the program. Raises NoShaderCompiler."""
    programs = _programs()
    if not programs:
        raise NoShaderCompiler(known=" nor ".join(_OPTIONS))
    return programs[0]


def find_matrix_compiler() -> str | None:
    """The path of the first program that knows cooperative matrices, None without one."""
    return _first_that_knows(matrices.EXTENSION)


def find_dot_compiler() -> str | None:
    """As `find_matrix_compiler`, for integer dot products."""
    return _first_that_knows(dots.EXTENSION)


def expressible() -> tuple[Capabilities, tuple[str, ...]]:
    """What the programs found can express, and their paths; all that there is where none was found."""
    programs = _programs()
    if not programs:
        return VULKAN, ()
    capabilities, used = VULKAN, programs[:1]
    for name, program in ((COOPERATIVE_MATRIX, find_matrix_compiler()), (INTEGER_DOT, find_dot_compiler())):
        if program is None:
            capabilities = capabilities.without(name)
        else:
            used.append(program)
    return capabilities, tuple(used)


def version(program: str) -> str:
    """What it says of itself."""
    said = run([program, "--version"], Path(os.devnull)).stdout
    return f"{Path(program).stem}: {(said.splitlines() or [''])[0]}"


def _programs() -> list[str]:
    return [path for name in _OPTIONS if (path := shutil.which(name)) is not None]


def _first_that_knows(extension: str) -> str | None:
    return next((program for program in _programs() if _knows(program, extension)), None)


@cache
def _knows(program: str, extension: str) -> bool:
    source = f"#version 450\n#extension {extension} : require\nlayout(local_size_x = 1) in;\nvoid main() {{}}\n"
    with TemporaryDirectory() as folder:
        return _run(program, source, Path(folder) / "probe.spv").returncode == 0


def _run(program: str, source: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [program, *_OPTIONS[Path(program).stem], "-o", str(path)]
    return run(command, path, source)


def compile_glsl(name: str, source: str, path: Path) -> Path:
    """Compile to the file `path`. Raises NoShaderCompiler, ShaderInvalid."""
    asked = [extension for extension in (matrices.EXTENSION, dots.EXTENSION) if extension in source]
    program = (_first_that_knows(asked[0]) if asked else None) or find_compiler()
    done = _run(program, source, path)
    if done.returncode != 0:
        output = (done.stderr + done.stdout).strip()  # one of them writes here, the other there
        raise ShaderInvalid(program=Path(program).name, name=name, output=output)
    return path


def compile_modules(functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
    """A module `<function>.spv` for each PrimFunc, its entry point `main`. Raises as `compile_glsl`."""

    def compile_one(item: tuple[str, str]) -> None:
        name, source = item
        if debug_level() >= 4:
            print(f"// {name}\n{source}", file=sys.stderr)
        compile_glsl(name, source, folder / f"{name}{SUFFIX}")
        advance(1)

    # Printing keeps Python's lock; the compilers are processes of their own, so they run side by side.
    sources = ((name, print_kernel(build())) for name, build in functions.items())
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))
