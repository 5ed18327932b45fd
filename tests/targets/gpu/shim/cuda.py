"""CUDA C++ as C++: what the preprocessor cannot turn into it, and the entry by which one thread runs a kernel."""

import re

from tests.targets.gpu.shim.library import Library

_KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\(\d+, \d+\) (\w+)\(([^)]*)\) \{$.*?^\}$', re.MULTILINE | re.DOTALL
)
_ARRAY = re.compile(r"^(\s*)(__shared__ )?alignas\(64\) (\w+) (\w+)\[(\d+)\];", re.MULTILINE)
_BARRIER = re.compile(r"\b__syncthreads\(")


def kernels(source):
    """The text of each kernel of a CUDA source by name, as the source has it."""
    return {match[1]: match[0] for match in _KERNEL.finditer(source)}


def parameters(text):
    """(type, name) of the kernel's parameters, in order."""
    return [tuple(item.rsplit(" ", 1)) for item in _KERNEL.search(text)[2].split(", ")]


def barriers(text):
    """Lines of the kernel's text with a barrier of the workgroup."""
    return [number for number, line in enumerate(text.splitlines(), 1) if _BARRIER.search(line)]


def cuda_library(source, races=False):
    """Every kernel of a CUDA source as a Library."""
    texts = {name: _with_entry(name, text) for name, text in kernels(source).items()}
    return Library(texts, "cuda.h", races=races)


def _with_entry(name, text):
    arguments = ", ".join(f"({kind})a[{index}]" for index, (kind, _) in enumerate(parameters(text)))
    body = _ARRAY.sub(_array, text.replace('extern "C" __global__', "static", 1))
    body = re.sub(r" __launch_bounds__\(\d+, \d+\)", "", body, count=1)
    return f"{body}\nstatic void {name}_entry(void* const* a) {{ {name}({arguments}); }}"


def _array(match):
    indent, shared, kind, name, size = match.groups()
    return f"{indent}{'static shim::Shared' if shared else 'shim::Array'}<{kind}, {size}> {name};"
