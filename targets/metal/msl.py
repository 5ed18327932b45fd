"""The kernels of an artifact as MSL, a text a function: TVM's Metal runtime compiles each by itself, when it is first
launched, for the newest version of the language that the system has. They use nothing that is newer than LANGUAGE."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsv3c.compiler.options import debug_level
from dsv3c.targets.gpu.source import METAL, source

LANGUAGE = "msl-2.3"
SUFFIX = ".metal"


def write_texts(functions: Mapping[str, Callable[[], Any]], folder: Path, advance: Callable[[int], None]) -> None:
    """A text `<function>.metal` for each PrimFunc; its operand i is buffer(i). DSV3C_DEBUG=4 prints them on stderr."""
    for name, build in functions.items():
        text = source({name: build()}, METAL)
        if debug_level() >= 4:
            print(text, file=sys.stderr)
        (folder / f"{name}{SUFFIX}").write_text(text, encoding="utf-8")
        advance(1)
