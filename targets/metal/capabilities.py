"""What Apple's GPUs can do that forms of kernels may require."""

from __future__ import annotations

from dsv3c.targets.gpu.capabilities import SIMDGROUP_MATRIX, SUBGROUP_32, Capabilities

METAL = Capabilities(always=frozenset({SUBGROUP_32, SIMDGROUP_MATRIX}))
