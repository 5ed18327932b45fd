"""Integer dot products in GLSL: what `targets/gpu/kernels/units/dots.py` asks for.

The instruction is OpSDot of SPV_KHR_integer_dot_product, whose last operand says that a word has four int8. It is named
by its number: compilers have known GL_EXT_spirv_intrinsics for longer than GLSL's own extension for it.
"""

from __future__ import annotations

from dsv3c.targets.gpu.kernels.units.dots import DOT

EXTENSION = "GL_EXT_spirv_intrinsics"
_CAPABILITIES = (6018, 6019)  # DotProductInput4x8BitPacked, DotProduct
_ASKED = f'extensions = ["SPV_KHR_integer_dot_product"], capabilities = [{", ".join(map(str, _CAPABILITIES))}]'
HEAD = (
    f"#extension {EXTENSION} : require",
    f"spirv_instruction({_ASKED}, id = 4450) int {DOT}(uint a, uint b, spirv_literal int format);",
)
EXTERNAL = {DOT: f"{DOT}({{}}, {{}}, 0)"}
