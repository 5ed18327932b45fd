"""Kernels as a library, in one step."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.library import compile_object, compile_support, link_library


def build_library(functions: Mapping[str, Any], level: IsaLevel, path: Path) -> Path:
    """PrimFuncs under their names, compiled for `level` and linked into the library `path`."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = compile_object(functions, level, Path(folder, "kernels.o"))
        return link_library([kernels, *compile_support(level.platform, Path(folder))], level, path)
