"""Importing the runtime loads nothing of the compiler and no large package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_structure import MODULES

HEAVY = ["dsv3c.compiler", "dsv3c.passes", "dsv3c.targets", "tvm", "onnx", "torch", "ml_dtypes", "safetensors", "rich"]


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


def test_no_module_imports_what_a_device_lacks() -> None:
    """Every module at once; `tvm_ffi` too is left to the function that calls kernels, as it would import torch."""
    modules = ", ".join(name for name in sorted(MODULES) if name.startswith("dsv3c.runtime"))
    heavy = [*HEAVY, "onnxruntime", "matplotlib", "tvm_ffi"]
    code = f"import sys, {modules}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
