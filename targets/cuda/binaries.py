"""From kernels to the file of an artifact: one fat binary with all kernels for each architecture, and as PTX."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3c.compiler.options import debug_level
from dsv3c.runtime.artifact.dispatches import Table
from dsv3c.runtime.artifact.plan import NEVER
from dsv3c.targets.cuda.architectures import FIRST_MMA, PTX, number
from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.cuda.toolchains import Toolchain
from dsv3c.targets.gpu.capabilities import MMA
from dsv3c.targets.gpu.source import source

FILE = "kernels.fatbin"
PRELUDE = Path(__file__).with_name("prelude.h")
_SIGNATURE = re.compile(r"__launch_bounds__\([^)]*\) \w+\((?P<parameters>[^)]*)\) \{\n")


def levels(architectures: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """Rows of the manifest, one an image of the fat binary, the most general first: a device runs the last that it has
    the capability for, which is the one that its driver takes.

    A device of compute capability X.Y has the capabilities sm_Xy for y <= Y, and compute_V for V <= XY.
    """
    return tuple({"name": name, "requires": [name], "file": f"kernels/{FILE}"} for name in (PTX, *architectures))


def attending(rows: Sequence[Mapping[str, Any]], table: Table | None) -> tuple[Mapping[str, Any], ...]:
    """The rows of the manifest with how long steps attend, where the table of dispatches has attention in latent space
    on tensor cores: in latent space, too. See docs/20-cuda.md."""
    kernels = table.forms.items() if table else ()
    attention = [form for name, forms in kernels if name.startswith("mla_absorbed") for form in forms]
    if not any(MMA in form.requires for form in attention):
        return tuple(rows)
    return tuple({**row, **({"prefill_min_tokens": NEVER} if number(row["name"]) >= FIRST_MMA else {})} for row in rows)


@dataclass(frozen=True)
class Binaries:
    """architectures: sm_XX of the cubins."""

    toolchain: Toolchain
    architectures: tuple[str, ...]

    def compile(self, functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
        """Write the fat binary into `folder`. DSV3C_DEBUG=4 prints the source on stderr. Raises CudaRefused."""
        text = cuda_source({name: build() for name, build in functions.items()})
        if debug_level() >= 4:
            print(text, file=sys.stderr)
        (folder / FILE).write_bytes(self.toolchain.fatbin(text, self.architectures))
        advance(len(functions))


def cuda_source(functions: Mapping[str, Any]) -> str:
    """The whole text that is compiled: every operand begins at a multiple of sixteen bytes, so that the compiler may
    load neighbours together."""
    kernels = _SIGNATURE.sub(_with_alignment, source(functions, CUDA))
    return PRELUDE.read_text(encoding="utf-8") + "\n" + kernels


def _with_alignment(signature: re.Match[str]) -> str:
    names = [parameter.split()[-1] for parameter in signature["parameters"].split(",")]
    return signature[0] + "".join(f"  DSV3C_ALIGNED({name});\n" for name in names)
