"""What a cubin says of its kernels: an ELF file whose sections .nv.info hold attributes in (format, code, value) form.

The layout is that of ELF files for EM_CUDA as nvcc 13 writes them; codes are the EIATTR_* that nvdisasm prints.
"""

import struct
from dataclasses import dataclass

_FRAME_SIZE, _REGISTERS = 0x11, 0x2F  # of all kernels: symbol index, value
_PARAMETER, _MAX_THREADS = 0x17, 0x05  # of one: index, ordinal, offset, flags and size; x, y, z
_EM_CUDA = 190
_SIZED = 4  # the format whose value is a length, data follows


@dataclass(frozen=True)
class Kernel:
    """parameters: bytes of each, in order. shared, frame: bytes a workgroup and a thread; a frame holds spills."""

    parameters: tuple[int, ...]
    registers: int
    shared: int
    frame: int
    threads: tuple[int, int, int]


def read_cubin(content):
    """(architecture, kernels by name): 80 for sm_80."""
    assert content[:6] == b"\x7fELF\x02\x01" and struct.unpack_from("<H", content, 18)[0] == _EM_CUDA
    (table,), (flags,) = struct.unpack_from("<Q", content, 40), struct.unpack_from("<I", content, 48)
    entry, count, strings = struct.unpack_from("<HHH", content, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", content, table + i * entry) for i in range(count)]
    sections = {_text(content, rows[strings][4] + row[0]): row for row in rows}
    common = list(_attributes(content, sections[".nv.info"]))
    symbols = _symbols(content, sections)
    registers = {symbols[index]: value for index, value in _pairs(common, _REGISTERS)}
    frames = {symbols[index]: value for index, value in _pairs(common, _FRAME_SIZE)}
    kernels = {}
    for section, row in sections.items():
        if not section.startswith(".nv.info."):
            continue
        name = section.removeprefix(".nv.info.")
        attributes = list(_attributes(content, row))
        found = [struct.unpack("<IHHI", data) for code, data in attributes if code == _PARAMETER]
        sizes = {ordinal: packed >> 18 for _, ordinal, _, packed in found}
        threads = next(struct.unpack("<III", data) for code, data in attributes if code == _MAX_THREADS)
        shared = sections.get(f".nv.shared.{name}")
        kernels[name] = Kernel(
            tuple(sizes[i] for i in range(len(sizes))),
            registers[name],
            shared[5] if shared else 0,
            frames[name],
            threads,
        )
    return flags >> 8 & 0xFF, kernels


def _attributes(content, row):
    """(code, data) of those with data."""
    at, end = row[4], row[4] + row[5]
    while at < end:
        form, code, value = struct.unpack_from("<BBH", content, at)
        at += 4
        if form == _SIZED:
            yield code, content[at : at + value]
            at += value


def _pairs(attributes, wanted):
    return [struct.unpack("<II", data) for code, data in attributes if code == wanted]


def _symbols(content, sections):
    table, strings = sections[".symtab"], sections[".strtab"]
    offsets = [struct.unpack_from("<I", content, table[4] + at)[0] for at in range(0, table[5], 24)]
    return [_text(content, strings[4] + offset) for offset in offsets]


def _text(content, at):
    return content[at : content.index(b"\0", at)].decode()
