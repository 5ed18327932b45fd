"""Cooperative matrices by their definition, in plain GLSL: kernels that use them run on any device, with the sizes and
subgroups of others.

The threads of a subgroup have the sums of a matrix in turn. Factors stay where they were loaded from, since kernels
leave that memory as it is until they are multiplied.
"""

import re

_SUMS = """
struct A { int at, stride; };
struct B { int at, stride; };
const int EACH = MATRIX_M * MATRIX_N / WIDTH;
struct Accumulator { float e[EACH]; };
vec2 half2(float a, float b) { return unpackHalf2x16(packHalf2x16(vec2(a, b))); }
int element(int i) { return i * WIDTH + int(gl_LocalInvocationID.x) % WIDTH; }
"""
_FUNCTIONS = """
Accumulator filled(float value) {
  Accumulator c;
  [[dont_unroll]] for (int i = 0; i < EACH; ++i) c.e[i] = value;
  return c;
}
Accumulator coopMatMulAdd(A a, B b, Accumulator c) {
  [[dont_unroll]] for (int i = 0; i < EACH; ++i) {
    int row = a.at + element(i) / MATRIX_N * a.stride, column = b.at + element(i) % MATRIX_N * b.stride;
    [[dont_unroll]] for (int k = 0; k < MATRIX_K / 2; ++k) c.e[i] += dot(LEFT[row + k], RIGHT[column + k]);
  }
  return c;
}
void stored(Accumulator m, int at, int stride) {
  [[dont_unroll]] for (int i = 0; i < EACH; ++i)
    SUMS[at + element(i) / MATRIX_N * stride + element(i) % MATRIX_N] = m.e[i];
}
"""
_ROWS, _COLUMNS = ", gl_CooperativeMatrixLayoutRowMajor", ", gl_CooperativeMatrixLayoutColumnMajor"


def modelled(text, constants, width):
    """The kernel with these specialisation constants, for subgroups of `width` threads."""
    lines = [line for line in text.splitlines() if not line.startswith(("#pragma", "#extension"))]
    text = "\n".join([lines[0], "#extension GL_EXT_control_flow_attributes : require", *lines[1:], ""])
    for number, value in constants.items():
        text = re.sub(rf"layout\(constant_id = {number}\) const int (\w+) = \d+;", rf"const int \1 = {value};", text)
    text = re.sub(r"coopmat<\w+, gl_ScopeSubgroup, \w+, \w+, gl_MatrixUse(\w+)>", r"\1", text)
    names = {}
    for kind, call, layout, pattern in (
        ("LEFT", "coopMatLoad", _ROWS, r"\1 = A(\3, \4);"),
        ("RIGHT", "coopMatLoad", _COLUMNS, r"\1 = B(\3, \4);"),
        ("SUMS", "coopMatStore", _ROWS, r"stored(\1, \3, \4);"),
    ):
        use = re.compile(rf"{call}\((\S+|\S+\[.*?\]), (\w+), (.*), (\d+){layout}\);")
        (names[kind],) = {found[2] for found in use.finditer(text)}
        text = use.sub(pattern, text)
    text = text.replace("Accumulator(0.0)", "filled(0.0)").replace("shared f16vec2", "shared vec2")
    text = text.replace("f16vec2(", "half2(").replace("gl_SubgroupID", "(gl_LocalInvocationID.x / WIDTH)")
    for kind, name in names.items():
        text = text.replace(f" {name}[", f" {kind}[").replace(f"({name}[", f"({kind}[")
    head, body = text.replace("[[unroll]]", "[[dont_unroll]]").split("layout(local_size_x", 1)
    shared, main = body.split("void main()", 1)
    return f"{head}const int WIDTH = {width};{_SUMS}layout(local_size_x{shared}{_FUNCTIONS}void main(){main}"
