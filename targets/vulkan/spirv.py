"""From GLSL to SPIR-V: the program glslc (Google's shaderc), run when an artifact is made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dsv3c.compiler.errors import Dsv3cError

ENVIRONMENT = "vulkan1.2"  # SPIR-V 1.5; 1.3 would ask devices for maintenance4


class NoGlslc(Dsv3cError):
    message = "glslc was not found, it compiles Vulkan kernels"
    hint = "install glslc (Debian package glslc, or the Vulkan SDK)"


class ShaderInvalid(Dsv3cError):
    message = "glslc refuses the kernel {name}:\n{output}"
    hint = "this is a mistake in dsv3c; DSV3C_DEBUG=4 prints the source"


def compile_glsl(name: str, source: str, path: Path) -> Path:
    """Compile to the file `path`. Raises NoGlslc, ShaderInvalid."""
    program = shutil.which("glslc")
    if program is None:
        raise NoGlslc()
    command = [program, f"--target-env={ENVIRONMENT}", "-fshader-stage=compute", "-O", "-", "-o", str(path)]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ShaderInvalid(name=name, output=done.stderr.strip())
    return path
