"""What an ELF library of 64 bits wants of others (System V ABI, and symbol versions as in LSB's)."""

from __future__ import annotations

import struct
from pathlib import Path

_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, align, entry size
_DYNAMIC, _NEEDED_VERSIONS = 6, 0x6FFFFFFE
_SYMBOLIC, _FLAGS, _FLAG_SYMBOLIC = 16, 30, 2


def _sections(data: bytes) -> list[tuple[int, ...]]:
    (offset,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    return [_SECTION.unpack_from(data, offset + size * number) for number in range(count)]


def _string(data: bytes, table: tuple[int, ...], at: int) -> str:
    start = table[4] + at
    return data[start : data.index(b"\0", start)].decode()


def versions(path: Path) -> dict[str, str]:
    """Symbol versions that the file wants, each with the library it is to be of."""
    data = path.read_bytes()
    sections = _sections(data)
    found = {}
    for section in sections:
        if section[1] != _NEEDED_VERSIONS:
            continue
        strings, at = sections[section[6]], section[4]
        for _ in range(section[7]):
            _, count, file, first, following = struct.unpack_from("<HHIII", data, at)
            each = at + first
            for _ in range(count):
                _, _, _, name, step = struct.unpack_from("<IHHII", data, each)
                found[_string(data, strings, name)] = _string(data, strings, file)
                each += step
            at += following
    return found


def glibc(path: Path) -> tuple[int, ...]:
    """The newest version of glibc that the file wants symbols of."""
    names = [name.removeprefix("GLIBC_") for name in versions(path) if name.startswith("GLIBC_")]
    return max(tuple(map(int, name.split("."))) for name in names)


def binds_to_itself(path: Path) -> bool:
    """Whether references of the file to symbols that it has are to its own, whoever else has them: DT_SYMBOLIC."""
    data = path.read_bytes()
    (dynamic,) = (section for section in _sections(data) if section[1] == _DYNAMIC)
    entries = struct.iter_unpack("<qQ", data[dynamic[4] : dynamic[4] + dynamic[5]])
    return any(tag == _SYMBOLIC or (tag == _FLAGS and value & _FLAG_SYMBOLIC) for tag, value in entries)
