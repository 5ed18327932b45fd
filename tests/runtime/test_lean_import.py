"""Importing the runtime loads nothing of the compiler and no large package."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["dsv3c.compiler", "dsv3c.passes", "dsv3c.targets", "tvm", "onnx", "torch", "ml_dtypes", "safetensors"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("dsv3c.runtime", [*HEAVY, "numpy", "tvm_ffi", "tokenizers"]),
        ("dsv3c.runtime.model", [*HEAVY, "tvm_ffi", "tokenizers", "jinja2"]),
    ],
)
def test_import_is_lean(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
