"""What Vulkan devices can do that forms of kernels may require."""

from __future__ import annotations

from dsv3c.targets.gpu.capabilities import COOPERATIVE_MATRIX, INTEGER_DOT, SUBGROUP_SHUFFLE, Capabilities

VULKAN = Capabilities(some=frozenset({SUBGROUP_SHUFFLE, COOPERATIVE_MATRIX, INTEGER_DOT}))
