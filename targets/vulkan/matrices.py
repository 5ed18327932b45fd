"""Cooperative matrices in GLSL: what targets/gpu/kernels/units/cooperative.py asks for, by the names it has for it.

Their sizes are specialisation constants, which the runtime sets to what the device reports.
"""

from __future__ import annotations

from dsv3c.targets.gpu.kernels.units.cooperative import (
    CLEAR,
    LEFT,
    LOAD_LEFT,
    LOAD_RIGHT,
    MULTIPLY_ADD,
    PAIR,
    RIGHT,
    STORE,
    SUBGROUP,
    SUMS,
    Size,
)

EXTENSION = "GL_KHR_cooperative_matrix"
_SIZES = {Size.M: 16, Size.N: 16, Size.K: 16, Size.ROWS: 32, Size.COLUMNS: 32}  # by constant from 1 on
_NAMES = {name: name.removeprefix("dsv3c_").upper() for name in _SIZES}
_EXTENSIONS = (
    EXTENSION,
    "GL_KHR_memory_scope_semantics",
    "GL_KHR_shader_subgroup_basic",
    "GL_EXT_control_flow_attributes",
    "GL_EXT_shader_explicit_arithmetic_types_float16",
)
HEAD = (
    "#pragma use_vulkan_memory_model",
    *(f"#extension {name} : require" for name in _EXTENSIONS),
    *(f"layout(constant_id = {i}) const int {_NAMES[name]} = {_SIZES[name]};" for i, name in enumerate(_SIZES, 1)),
)
_M, _N, _K, _ROWS, _COLUMNS = _NAMES.values()
_KINDS = {SUMS: ("float", _M, _N, "Accumulator"), LEFT: ("float16_t", _M, _K, "A"), RIGHT: ("float16_t", _K, _N, "B")}
_TYPES = {
    scope: f"coopmat<{element}, gl_ScopeSubgroup, {rows}, {columns}, gl_MatrixUse{use}>"
    for scope, (element, rows, columns, use) in _KINDS.items()
}
_COUNTS = {SUMS: f"{_ROWS} / {_M} * ({_COLUMNS} / {_N})", LEFT: f"{_ROWS} / {_M}", RIGHT: "1"}
_ROW_MAJOR, _COLUMN_MAJOR = (f"gl_CooperativeMatrixLayout{order}Major" for order in ("Row", "Column"))

EXTERNAL = {
    **_NAMES,
    SUBGROUP: "int(gl_SubgroupID)",
    PAIR: "f16vec2({}, {})",
    CLEAR: f"{{}} = {_TYPES[SUMS]}(0.0)",
    LOAD_LEFT: f"coopMatLoad({{}}, {{}}, {{}}, {_ROW_MAJOR})",
    LOAD_RIGHT: f"coopMatLoad({{}}, {{}}, {{}}, {_COLUMN_MAJOR})",
    MULTIPLY_ADD: "{0} = coopMatMulAdd({1}, {2}, {0})",
    STORE: f"coopMatStore({{}}, {{}}, {{}}, {_ROW_MAJOR})",
}


def is_matrix(scope: str) -> bool:
    return scope in _KINDS


def declared(scope: str, name: str) -> str:
    """An array of all matrices of the kind that a subgroup has."""
    return f"{_TYPES[scope]} {name}[{_COUNTS[scope]}];"
