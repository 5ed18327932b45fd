"""What NVIDIA's GPUs can do that forms of kernels may require."""

from __future__ import annotations

from dsv3c.targets.gpu.capabilities import MMA, SUBGROUP_32, Capabilities

CUDA = Capabilities(always=frozenset({SUBGROUP_32}), some=frozenset({MMA}))
