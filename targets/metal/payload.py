"""Kernels in the form that TVM's runtime 0.27 reads: a module of kind "metal", and the bytes a library carries it in.

Numbers are little endian; a count of 64 bits stands before what varies in length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_HANDLE = struct.pack("<BBH", 3, 64, 1)  # DLDataType of a pointer


@dataclass(frozen=True)
class MetalKernel:
    """text: MSL with the operands as its buffers. tags: the axes of its launch as TVM names them, e.g. blockIdx.x."""

    text: str
    operands: int
    tags: Sequence[str]


def library_bin(kernels: Mapping[str, MetalKernel]) -> bytes:
    """What TVM's `export_library` calls __tvm_ffi__library_bin: its size, which module imports which, the modules.

    The first, "_lib", is the library itself, without functions here; it imports the second, the kernels.
    """
    imports = _numbers([0, 1, 1]) + _numbers([1])  # module 0 imports module 1, as compressed rows
    data = imports + _text("_lib") + _text("metal") + _counted(payload(kernels))
    return _counted(data)


def payload(kernels: Mapping[str, MetalKernel]) -> bytes:
    """The module alone: the format, what each function takes, the texts.

    A function takes the addresses of its buffers, then the extents of its grid and of the workgroup.
    """
    infos = [_text(name) + _info(name, kernel) for name, kernel in kernels.items()]
    texts = [_text(name) + _text(kernel.text) for name, kernel in kernels.items()]
    return _text("metal") + _sequence(infos) + _sequence(texts)


def _info(name: str, kernel: MetalKernel) -> bytes:
    extra = [struct.pack("<i", 0)] * kernel.operands
    tags = map(_text, kernel.tags)
    return _text(name) + _sequence([_HANDLE] * kernel.operands) + _sequence(tags) + _sequence(extra)


def _numbers(numbers: Sequence[int]) -> bytes:
    return _sequence(struct.pack("<Q", number) for number in numbers)


def _text(text: str) -> bytes:
    return _counted(text.encode())


def _counted(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def _sequence(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return struct.pack("<Q", len(listed)) + b"".join(listed)
