"""MSL as C++: what the preprocessor cannot turn into it, and the entry by which one thread runs a kernel."""

import re

from tests.targets.gpu.shim.library import Library

_KERNEL = re.compile(r"^kernel void (\w+)\((.*?)\) \{$", re.MULTILINE | re.DOTALL)
_PARAMETER = re.compile(
    r"\s*(?P<type>[^\[,]*?)\s*(?P<name>\w+)\s*\[\[\s*(?P<attribute>\w+)(?:\((?P<index>\d+)\))?\s*\]\]"
)
_ARRAY = re.compile(r"^(\s*)(threadgroup|thread) (\w+) (\w+)\[(\d+)\];", re.MULTILINE)
_INCLUDES = re.compile(r"^(#include .*|using namespace metal;)$", re.MULTILINE)
_BARRIER = re.compile(r"\bthreadgroup_barrier\(")


def kernels(source):
    """The text of each kernel of an MSL source by name, as the source has it."""
    texts = [text for text in source.split("// Function: ") if _KERNEL.search(text)]
    return {_KERNEL.search(text)[1]: "// Function: " + text for text in texts}


def parameters(text):
    """(type, name, attribute, index or None) of the kernel's parameters, in order."""
    return [match.group("type", "name", "attribute", "index") for match in _PARAMETER.finditer(_KERNEL.search(text)[2])]


def barriers(text):
    """Lines of the kernel's text with a barrier of the workgroup."""
    return [number for number, line in enumerate(text.splitlines(), 1) if _BARRIER.search(line)]


def metal_library(source, races=False):
    """Every kernel of an MSL source as a Library."""
    texts = {name: _with_entry(name, text) for name, text in kernels(source).items()}
    return Library(texts, "metal.h", races=races)


def _with_entry(name, text):
    arguments = ", ".join(_argument(*parameter) for parameter in parameters(text))
    body = _ARRAY.sub(_array, _INCLUDES.sub("", text))
    lines = ["using namespace metal;" + body, f"static void {name}_entry(void* const* a) {{ {name}({arguments}); }}"]
    return "\n".join(lines)


def _argument(kind, name, attribute, index):
    if attribute == "buffer":
        if kind.endswith("&"):
            return f"*({kind.removesuffix('&').strip()}*)a[{index}]"
        return f"({kind.strip()})a[{index}]"
    return f"{attribute}()"


def _array(match):
    indent, space, kind, name, size = match.groups()
    return f"{indent}{'static shim::Shared' if space == 'threadgroup' else 'shim::Array'}<{kind}, {size}> {name};"
