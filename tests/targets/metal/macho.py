"""Reads Mach-O libraries strictly: what it does not expect is a fault. The formats are those of Apple's <mach-o/*.h>
and of the code directory in xnu's cs_blobs.h."""

import hashlib
import struct
from dataclasses import dataclass, field

MAGIC_64, CPU_ARM64, MH_DYLIB = 0xFEEDFACF, 0x0100000C, 6
SEGMENT_64, ID_DYLIB, LOAD_DYLIB, CODE_SIGNATURE, BUILD_VERSION = 0x19, 0xD, 0xC, 0x1D, 0x32
DYLD_INFO, EXPORTS_TRIE = 0x80000022, 0x80000033
SIGNATURE, CODE_DIRECTORY, ADHOC, SHA256 = 0xFADE0CC0, 0xFADE0C02, 0x2, 2
MACOS = 1  # of platforms


@dataclass
class Library:
    """symbols: address of those that dyld finds. needed: install names. sections: (address, size, place in the file).
    minimum: (platform, version) of the oldest system. signature: its bytes, and where they lie."""

    data: bytes
    name: str = ""
    needed: list = field(default_factory=list)
    sections: list = field(default_factory=list)
    symbols: dict = field(default_factory=dict)
    minimum: tuple | None = None
    signature: bytes | None = None
    signature_at: int = 0

    def content(self, symbol):
        """The bytes from a symbol to its section's end."""
        at = self.symbols[symbol]
        (found,) = [(start, size, place) for start, size, place in self.sections if start <= at < start + size]
        start, size, place = found
        return self.data[place + at - start : place + size]


def read(path):
    data = path.read_bytes()
    magic, cpu, _, kind, commands, size, _, _ = struct.unpack_from("<8I", data)
    assert (magic, cpu, kind) == (MAGIC_64, CPU_ARM64, MH_DYLIB)
    library, at = Library(data), 32
    for _ in range(commands):
        command, length = struct.unpack_from("<2I", data, at)
        assert length >= 8 and length % 8 == 0 and at + length <= 32 + size
        _READERS.get(command, lambda *_: None)(library, data[at : at + length])
        at += length
    assert at == 32 + size
    return library


def check_signature(library):
    """An ad-hoc signature whose hashes are those of the file's pages: arm64 macOS loads nothing else."""
    data, signature = library.data, library.signature
    magic, length, count = struct.unpack_from(">3I", signature)
    assert magic == SIGNATURE and length <= len(signature) and count >= 1
    slots = dict(struct.unpack_from(">2I", signature, 12 + 8 * i) for i in range(count))
    directory = signature[slots[0] :]
    magic, length, _, flags, hashes, _, _, slots, limit = struct.unpack_from(">9I", directory)
    width, kind, _, page = struct.unpack_from("4B", directory, 36)
    assert (magic, kind, width) == (CODE_DIRECTORY, SHA256, 32) and flags & ADHOC
    assert limit == library.signature_at
    pages = range(0, limit, 1 << page)
    assert slots == len(pages)
    for number, start in enumerate(pages):
        wanted = hashlib.sha256(data[start : min(start + (1 << page), limit)]).digest()
        assert directory[hashes + 32 * number : hashes + 32 * (number + 1)] == wanted


def _segment(library, command):
    (count,) = struct.unpack_from("<I", command, 64)
    assert len(command) == 72 + 80 * count
    for at in range(72, len(command), 80):
        address, size, place = struct.unpack_from("<QQI", command, at + 32)
        assert place + size <= len(library.data)
        library.sections.append((address, size, place))


def _exports(library, command):
    """The tree of prefixes in which dyld looks symbols up, in either command; addresses count from the header."""
    first, size = struct.unpack_from("<2I", command, len(command) - 8)
    tree = library.data[first : first + size]
    assert len(tree) == size

    def visit(at, prefix):
        length, at = _number(tree, at)
        children = at + length
        if length:
            flags, at = _number(tree, at)
            address, at = _number(tree, at)
            assert flags == 0 and at == children
            library.symbols[prefix.decode()] = address
        at = children + 1
        for _ in range(tree[children]):
            end = tree.index(b"\0", at)
            below, after = _number(tree, end + 1)
            visit(below, prefix + tree[at:end])
            at = after

    visit(0, b"")


def _number(data, at):
    """An unsigned LEB128, and what stands behind it."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


def _name(library, command):
    assert not library.name
    library.name = _string(command, struct.unpack_from("<I", command, 8)[0])


def _needed(library, command):
    library.needed.append(_string(command, struct.unpack_from("<I", command, 8)[0]))


def _minimum(library, command):
    platform, version = struct.unpack_from("<2I", command, 8)
    library.minimum = platform, (version >> 16, version >> 8 & 255)


def _signature(library, command):
    at, size = struct.unpack_from("<2I", command, 8)
    assert at + size == len(library.data)
    library.signature, library.signature_at = library.data[at:], at


def _string(data, at):
    return data[at : data.index(b"\0", at)].decode()


_READERS = {
    SEGMENT_64: _segment,
    DYLD_INFO: _exports,
    EXPORTS_TRIE: _exports,
    ID_DYLIB: _name,
    LOAD_DYLIB: _needed,
    BUILD_VERSION: _minimum,
    CODE_SIGNATURE: _signature,
}
