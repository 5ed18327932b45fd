"""The library of an artifact's kernels: one symbol with the module of kind "metal", as TVM's runtime looks for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from dsv3c.compiler.tools import run
from dsv3c.targets.link.platforms import ARM_MACOS, LinkFailed, Platform, find_compiler_for

LIBRARY = f"metal{ARM_MACOS.suffix}"
SYMBOL = "__tvm_ffi__library_bin"


def link_library(data: bytes, path: Path, platform: Platform | None = ARM_MACOS) -> Path:
    """Link `payload.library_bin` into the library `path`, by default for Macs with Apple silicon; None: this machine.

    Raises NoCCompiler, NoCrossCompiler, LinkFailed.
    """
    compiler = find_compiler_for(platform)
    shared = [option.format(name=path.name) for option in platform.shared] if platform else []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "library_bin.c")
        text.write_text(_definition(data), encoding="ascii")
        command = [*compiler, "-shared", "-fPIC", *shared, "-o", str(path), str(text)]
        done = run(command, path)
    if done.returncode != 0:
        raise LinkFailed(path=path, command=" ".join(command), output=done.stderr.strip())
    return path


def _definition(data: bytes) -> str:
    """C, as TVM's `export_library` writes it."""
    values = ",".join(map(str, data))
    return f"const unsigned char {SYMBOL}[{len(data)}] = {{{values}}};\n"
