"""A printer from a lowered kernel to GLSL 4.50 for Vulkan compute.

It prints what kernels of dsv3c.targets.gpu consist of: flat buffers of 32-bit words, scalar expressions, loops,
conditions, one-dimensional workgroups. Index arithmetic is never negative there, so FloorDiv is `/`. A float16 exists
only as bits that are widened at once, which is `unpackHalf2x16`: no device feature is asked for. Kernels that have
subgroups, cooperative matrices (see `matrices`) or integer dot products (see `dots`) ask for some, by what they call.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import tvm
from tvm import s_tir

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.targets.gpu.kernels.subgroups import SHUFFLE_XOR, SUBGROUP_SIZE
from dsv3c.targets.vulkan import dots, matrices

_TYPES = {"float32": "float", "int32": "int", "uint32": "uint", "bool": "bool", "float16x2": "f16vec2"}
_BINARY = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "FloorDiv": "/", "FloorMod": "%", "LT": "<", "LE": "<=",
    "GT": ">", "GE": ">=", "EQ": "==", "NE": "!=", "And": "&&", "Or": "||",
    "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^", "LShift": "<<", "RShift": ">>",
}  # fmt: skip
_CALLS = {
    "Min": "min", "Max": "max", "tirx.fabs": "abs", "tirx.floor": "floor", "tirx.nearbyint": "roundEven",
    "tirx.sqrt": "sqrt",
}  # fmt: skip
_BITCASTS = {
    ("float32", "uint32"): "uintBitsToFloat",
    ("float32", "int32"): "intBitsToFloat",
    ("uint32", "float32"): "floatBitsToUint",
    ("int32", "float32"): "floatBitsToInt",
    ("int32", "uint32"): "int",
    ("uint32", "int32"): "uint",
}
_EXTERNAL = {SHUFFLE_XOR: "subgroupShuffleXor({}, uint({}))", SUBGROUP_SIZE: "SUBGROUP"}
_THREAD = "int(gl_LocalInvocationID.x)"
_SUBGROUPS = (
    "#extension GL_KHR_shader_subgroup_basic : require",
    "#extension GL_KHR_shader_subgroup_shuffle : require",
    "layout(constant_id = 0) const int SUBGROUP = 32;",
)
# Functions that kernels call, with the lines at the head of a module that has some of them.
_EXTENSIONS = ((_EXTERNAL, _SUBGROUPS), (matrices.EXTERNAL, matrices.HEAD), (dots.EXTERNAL, dots.HEAD))
_THREAD_OF_SUBGROUP = "int(gl_SubgroupID) * SUBGROUP + int(gl_SubgroupInvocationID)"


class NotPrintable(Dsv3cError):
    message = "the GLSL printer does not know {what}"
    hint = "this is a mistake in dsv3c: write the kernel with what targets/vulkan/glsl.py prints, or teach it more"


def print_kernel(function: Any) -> str:
    """GLSL of a PrimFunc; operand i is the storage buffer of set 0, binding i. Raises NotPrintable."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    # No simplification: it would put the value of every `bind` wherever the name stands.
    return _Printer(s_tir.transform.LowerOpaqueBlock()(module)["main"]).text()


class _Printer:
    def __init__(self, function: Any) -> None:
        self._names: dict[Any, str] = {}
        self._used: set[str] = set()
        self._lines: list[str] = []
        self._shared: list[str] = []
        self._threads = 1
        self._asked: set[tuple[str, ...]] = set()  # of the heads of _EXTENSIONS
        self._function = function

    def text(self) -> str:
        bindings = []
        for index, param in enumerate(self._function.params):
            name, dtype = self._name(param), self._element_type(param)
            block = f"buffer Operand{index} {{ {dtype} {name}[]; }};"
            bindings.append(f"layout(set = 0, binding = {index}, std430) {block}")
        self._statement(self._function.body, 1)
        asked = [line for _, lines in _EXTENSIONS if lines in self._asked for line in lines]
        head = ["#version 450", *asked, f"layout(local_size_x = {self._threads}) in;"]
        thread = f"  int thread = {_THREAD_OF_SUBGROUP if _SUBGROUPS in self._asked else _THREAD};"
        return "\n".join([*head, *bindings, *self._shared, "void main() {", thread, *self._lines, "}", ""])

    def _element_type(self, buffer: Any) -> str:
        return self._type(str(buffer.dtype))

    def _type(self, dtype: str) -> str:
        if dtype not in _TYPES:
            raise NotPrintable(what=f"the type {dtype}")
        return _TYPES[dtype]

    def _name(self, symbol: Any) -> str:
        """A name of its own for each variable or buffer."""
        if symbol not in self._names:
            base = "".join(c if c.isalnum() else "_" for c in symbol.name).strip("_") or "v"
            name = f"{base.replace('__', '_')}_{len(self._used)}"
            self._used.add(name)
            self._names[symbol] = name
        return self._names[symbol]

    def _line(self, depth: int, text: str) -> None:
        self._lines.append("  " * depth + text)

    # --- statements

    def _statement(self, node: Any, depth: int) -> None:
        kind = type(node).__name__
        method = getattr(self, f"_{kind.lower()}", None)
        if method is None:
            raise NotPrintable(what=f"the statement {kind}: {str(node)[:80]}")
        method(node, depth)

    def _seqstmt(self, node: Any, depth: int) -> None:
        for part in node.seq:
            self._statement(part, depth)

    def _attrstmt(self, node: Any, depth: int) -> None:
        if node.attr_key != "thread_extent":
            raise NotPrintable(what=f"the attribute {node.attr_key}")
        tag = str(node.node.thread_tag)
        if tag == "threadIdx.x":
            self._threads = int(node.value)
        self._names[node.node.var] = "thread" if tag == "threadIdx.x" else f"int(gl_WorkGroupID.{tag[-1]})"
        self._statement(node.body, depth)

    def _allocbuffer(self, node: Any, depth: int) -> None:
        buffer = node.buffer
        if matrices.is_matrix(str(buffer.scope())):
            self._asked.add(matrices.HEAD)
            self._line(depth, matrices.declared(str(buffer.scope()), self._name(buffer)))
            return
        size = math.prod(int(extent) for extent in buffer.shape)
        declared = f"{self._element_type(buffer)} {self._name(buffer)}[{size}];"
        if str(buffer.scope()).startswith("shared"):
            self._shared.append(f"shared {declared}")
        else:
            self._line(depth, declared)

    def _bufferstore(self, node: Any, depth: int) -> None:
        self._line(depth, f"{self._name(node.buffer)}[{self._value(node.indices[0])}] = {self._value(node.value)};")

    def _bind(self, node: Any, depth: int) -> None:
        value = self._value(node.value)
        self._line(depth, f"{self._type(_dtype(node.value))} {self._name(node.var)} = {value};")

    def _for(self, node: Any, depth: int) -> None:
        i, first = self._name(node.loop_var), self._value(node.min)
        unroll = "[[unroll]] " if node.kind == tvm.tirx.ForKind.UNROLLED else ""
        self._line(depth, f"{unroll}for (int {i} = {first}; {i} < {first} + {self._value(node.extent)}; ++{i}) {{")
        self._statement(node.body, depth + 1)
        self._line(depth, "}")

    def _ifthenelse(self, node: Any, depth: int) -> None:
        self._line(depth, f"if ({self._value(node.condition)}) {{")
        self._statement(node.then_case, depth + 1)
        if node.else_case is not None:
            self._line(depth, "} else {")
            self._statement(node.else_case, depth + 1)
        self._line(depth, "}")

    def _evaluate(self, node: Any, depth: int) -> None:
        value = node.value
        if type(value).__name__ == "Call" and value.op.name == "tirx.tvm_storage_sync":
            self._line(depth, "barrier();")
        elif type(value).__name__ == "Call" and value.op.name == "tirx.call_extern":
            self._line(depth, f"{self._value(value)};")
        elif type(value).__name__ != "IntImm":
            raise NotPrintable(what=f"the statement {str(node)[:80]}")

    # --- expressions

    def _value(self, node: Any) -> str:
        kind = type(node).__name__
        if kind == "Call":
            return self._call(node)
        if kind in _BINARY:
            return f"({self._value(node.a)} {_BINARY[kind]} {self._value(node.b)})"
        if kind in _CALLS:
            return f"{_CALLS[kind]}({self._value(node.a)}, {self._value(node.b)})"
        if kind in ("TensorLoad", "BufferLoad"):
            source = node.source if kind == "TensorLoad" else node.buffer
            return f"{self._name(source)}[{self._value(node.indices[0])}]"
        if kind == "Var":
            return self._name(node)
        if kind in ("IntImm", "FloatImm"):
            return self._literal(_dtype(node), node.value)
        if kind == "Not":
            return f"(!{self._value(node.a)})"
        if kind == "Select":
            parts = (node.condition, node.true_value, node.false_value)
            return "({} ? {} : {})".format(*map(self._value, parts))
        if kind == "Cast":
            return self._cast(node)
        raise NotPrintable(what=f"the expression {kind}: {str(node)[:80]}")

    def _call(self, node: Any) -> str:
        name, arguments = node.op.name, list(node.args)
        if name == "tirx.reinterpret":
            key = (_dtype(node), _dtype(arguments[0]))
            if key in _BITCASTS:
                return f"{_BITCASTS[key]}({self._value(arguments[0])})"
        if name == "prim.if_then_else":
            return "({} ? {} : {})".format(*map(self._value, arguments))
        if name == "tirx.call_extern":
            return self._external(str(arguments[0].value), arguments[1:])
        if name == "tirx.address_of":
            return self._place(arguments[0])
        if name not in _CALLS:
            raise NotPrintable(what=f"a call of {name}: {str(node)[:80]}")
        return f"{_CALLS[name]}({', '.join(map(self._value, arguments))})"

    def _external(self, function: str, arguments: list[Any]) -> str:
        for patterns, head in _EXTENSIONS:
            if function in patterns:
                self._asked.add(head)
                return patterns[function].format(*map(self._value, arguments))
        raise NotPrintable(what=f"the function {function}")

    def _place(self, load: Any) -> str:
        """An element of matrices itself; of other memory the array and the index, two arguments."""
        buffer, index = load.source if hasattr(load, "source") else load.buffer, self._value(load.indices[0])
        pattern = "{}[{}]" if matrices.is_matrix(str(buffer.scope())) else "{}, {}"
        return pattern.format(self._name(buffer), index)

    def _cast(self, node: Any) -> str:
        bits = _half_bits(node)
        if bits is not None:
            return f"unpackHalf2x16({self._value(bits)}).x"
        return f"{self._type(_dtype(node))}({self._value(node.value)})"

    def _literal(self, dtype: str, value: Any) -> str:
        if dtype == "bool":
            return "true" if value else "false"
        if dtype == "uint32":
            return f"{int(value) & 0xFFFFFFFF}u"
        if dtype == "int32":
            return str(int(value)) if value >= 0 else f"({int(value)})"
        if dtype != "float32" or not math.isfinite(value):
            raise NotPrintable(what=f"the number {value} of type {dtype}")
        exact = struct.unpack("<f", struct.pack("<f", value))[0]
        return repr(exact) if exact >= 0 else f"({exact!r})"


def _dtype(node: Any) -> str:
    return str(node.dtype) if hasattr(node, "dtype") else str(node.ty.dtype)


def _half_bits(cast: Any) -> Any:
    """The u32 whose low half a cast widens from float16 to float32, None for any other cast."""
    source = cast.value
    if _dtype(source) != "float16" or type(source).__name__ != "Call" or source.op.name != "tirx.reinterpret":
        return None
    return source.args[0].value
