"""What SPIR-V modules name and whether they are valid; no driver is needed."""

import subprocess

import numpy as np

from dsv3c.targets.vulkan.spirv import ENVIRONMENT

SHADER, SUBGROUPS, SHUFFLE = 1, 61, 65  # capabilities of SPIR-V: the language, its GroupNonUniform and …Shuffle
HALF, MEMORY_MODEL, MATRICES = 9, 5345, 6022  # Float16, VulkanMemoryModel, CooperativeMatrixKHR
NAMED = {  # in the modules of forms that require it
    "subgroup-shuffle": {SUBGROUPS, SHUFFLE},
    "cooperative-matrix": {SUBGROUPS, HALF, MEMORY_MODEL, MATRICES},
    "integer-dot-product": {6018, 6019},  # DotProductInput4x8BitPacked, DotProduct
}


def capabilities(spirv):
    """Operands of the instructions OpCapability (17) of a module; they come first."""
    words = np.frombuffer(spirv, "<u4")
    at, found = 5, set()
    while words[at] & 0xFFFF == 17:
        found.add(int(words[at + 1]))
        at += int(words[at] >> 16)
    return found


def named(requires):
    """Capabilities of SPIR-V that the module of a form names: Shader, which every device has, and what it requires."""
    return {SHADER}.union(*(NAMED[name] for name in requires))


def validate(path):
    """spirv-val accepts the module; one that is too old to know cooperative matrices need not."""
    done = subprocess.run(["spirv-val", "--target-env", ENVIRONMENT, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or f"Invalid capability operand: {MATRICES}" in done.stderr, done.stderr
    return done.returncode == 0
