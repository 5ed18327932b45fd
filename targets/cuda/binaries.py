"""From kernels to the files of an artifact: PTX once, one cubin an architecture, all with all kernels.

One file a level instead of one fat binary: NVRTC makes no fat binaries, whose format is not documented, and a runtime
reads only the file that fits its device, which the manifest names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3c.compiler.options import debug_level
from dsv3c.targets.cuda.architectures import PTX
from dsv3c.targets.cuda.toolchains import Toolchain
from dsv3c.targets.gpu.source import CUDA, source

PRELUDE = Path(__file__).with_name("prelude.h")


def levels(architectures: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """Rows of the manifest, the most general first: a device takes the last that it has the capability for.

    A device of compute capability X.Y has the capabilities sm_Xy for y <= Y, and compute_V for V <= XY.
    """
    rows = [PTX, *architectures]
    return tuple({"name": name, "requires": [name], "file": f"kernels/{file_name(name)}"} for name in rows)


def file_name(level: str) -> str:
    return f"{level}.ptx" if level == PTX else f"{level}.cubin"


@dataclass(frozen=True)
class Binaries:
    """architectures: sm_XX of the cubins."""

    toolchain: Toolchain
    architectures: tuple[str, ...]

    def compile(self, functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
        """Write all files into `folder`. DSV3C_DEBUG=4 prints the source on stderr. Raises CudaRefused."""
        text = cuda_source({name: build() for name, build in functions.items()})
        if debug_level() >= 4:
            print(text, file=sys.stderr)
        ptx = self.toolchain.ptx(text, PTX)
        (folder / file_name(PTX)).write_bytes(ptx)

        def compile_one(architecture: str) -> None:
            (folder / file_name(architecture)).write_bytes(self.toolchain.cubin(text, ptx, architecture))

        # The compilers run outside of Python's lock, side by side.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(compile_one, self.architectures))
        advance(len(functions))


def cuda_source(functions: Mapping[str, Any]) -> str:
    """The whole text that is compiled."""
    return PRELUDE.read_text(encoding="utf-8") + "\n" + source(functions, CUDA)
