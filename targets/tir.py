"""TVM's IR builder, imported when something of it is first asked for.

`from dsv3c.targets import tir as T` stands for `from tvm.script.ir_builder import tirx as T`, which takes seconds.
Kernels are told by their operands in every plan, and built only when they are emitted.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    found = globals()[name] = getattr(import_module("tvm.script.ir_builder.tirx"), name)
    return found
