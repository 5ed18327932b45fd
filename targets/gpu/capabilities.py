"""What differs between GPUs, by target: the capabilities that forms of kernels may require.

The runtime of a target knows the same names; a device that lacks one passes the forms over that require it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsv3c.targets.gpu.kernels.frame import Variant

MMA = "mma-m16n8k16"  # matrices of bfloat16 in the registers of a warp, see the PTX ISA; compute capability 8.0
SIMDGROUP_MATRIX = "simdgroup-matrix"  # matrices of 8 x 8 float32 in a SIMD group, see the MSL specification
COOPERATIVE_MATRIX = "cooperative-matrix"  # float16 in a subgroup, sizes known at loading, VK_KHR_cooperative_matrix
INTEGER_DOT = "integer-dot-product"  # of four int8 with four in one instruction, VK_KHR_shader_integer_dot_product
SUBGROUP_32 = "subgroup-32"  # subgroups of 32 neighbouring threads that exchange registers
SUBGROUP_SHUFFLE = "subgroup-shuffle"  # full subgroups of a width known at loading that do so

MOST_BINDING = 2047 << 20  # bytes: kernels count the elements of an operand, a byte or more each, in 32 bits


@dataclass(frozen=True)
class Capabilities:
    """always: what every device of a target has. some: what the runtime looks for in the device that it opens."""

    always: frozenset[str] = frozenset()
    some: frozenset[str] = frozenset()

    def without(self, name: str) -> Capabilities:
        """What is left for a compiler that cannot express one of them."""
        return Capabilities(self.always - {name}, self.some - {name})

    def usable(self, forms: Sequence[Variant]) -> tuple[Variant, ...]:
        """The forms that some device runs, requiring only what not all have; none that an earlier one stands for."""
        found: list[Variant] = []
        for form in forms:
            left = replace(form, requires=form.requires - self.always)
            if left.requires <= self.some and not any(_stands_for(earlier, left) for earlier in found):
                found.append(left)
        return tuple(found)


def _stands_for(earlier: Variant, other: Variant) -> bool:
    """Whether it is taken wherever `other` could be."""
    most, wanted = earlier.most_rows, other.most_rows
    return earlier.requires <= other.requires and (most is None or (wanted is not None and wanted <= most))


NOTHING = Capabilities()
