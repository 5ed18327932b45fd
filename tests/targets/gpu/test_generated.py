"""What is generated of a small kernel, to be read: GLSL, CUDA, MSL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dsv3c.targets.cuda.dialect import CUDA
from dsv3c.targets.gpu.kernels import variants
from dsv3c.targets.gpu.source import source
from dsv3c.targets.metal.dialect import METAL
from dsv3c.targets.vulkan.glsl import print_kernel
from tests.conftest import Golden
from tests.targets.small_kernel import SMALL

PRINTERS: dict[str, Callable[[Any], str]] = {
    "glsl": print_kernel,
    "cuda": lambda function: source({"kernel": function}, CUDA),
    "msl": lambda function: source({"kernel": function}, METAL),
}


@pytest.mark.parametrize("language", PRINTERS)
def test_a_small_kernel(language: str, golden: Golden) -> None:
    (form,) = variants(SMALL)
    golden.check(PRINTERS[language](form.build()).strip())
