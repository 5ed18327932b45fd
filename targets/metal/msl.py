"""The kernels of an artifact as MSL: a library for TVM's Metal runtime, and beside it a text a function to read.

TVM's runtime compiles each text by itself, when it is first launched, for the newest version of the language that the
system has. They use nothing that is newer than LANGUAGE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.options import debug_level
from dsv3c.targets.gpu.source import source, thread_tags
from dsv3c.targets.metal.dialect import METAL
from dsv3c.targets.metal.library import LIBRARY, link_library
from dsv3c.targets.metal.payload import MetalKernel, library_bin

LANGUAGE = "msl-2.3"
SUFFIX = ".metal"
LEVELS = ({"name": "apple-silicon", "requires": [], "file": f"kernels/{LIBRARY}"},)


def write_kernels(functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
    """LIBRARY with all PrimFuncs, and the text of each as `<function>.metal`. DSV3C_DEBUG=4 prints them on stderr.

    Raises NoCCompiler, NoCrossCompiler, LinkFailed.
    """
    kernels = {}
    for name, build in functions.items():
        kernels[name] = kernel = printed(name, build())
        if debug_level() >= 4:
            print(kernel.text, file=sys.stderr)
        (folder / f"{name}{SUFFIX}").write_text(kernel.text, encoding="utf-8")
        advance(1)
    link_library(library_bin(kernels), folder / LIBRARY)


def printed(name: str, function: Any) -> MetalKernel:
    """A PrimFunc as MSL; its operand i is buffer(i)."""
    return MetalKernel(source({name: function}, METAL), len(function.params), thread_tags(function.body))
