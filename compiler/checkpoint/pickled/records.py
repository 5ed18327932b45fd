"""Where the records of a zip archive lie, of those that are stored as they are.

Format: PKWARE's APPNOTE.TXT, 4.3: a central directory at the end names each record with the place of its local header,
behind which the data begins; sizes and places beyond 32 bits stand in the Zip64 extra field (4.5.3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, quote
from dsv3c.compiler.checkpoint.pickled.machine import Malformed

_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_END_BYTES, _COMMENT_BYTES = 22, 1 << 16
_MAX_RECORDS = 1 << 18
_STORED = 0
_BEYOND = 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    begin: int
    end: int


def records(data: memoryview) -> dict[str, Record]:
    """Records by name. Raises Malformed, also for compressed and encrypted ones."""
    count, size, place = _directory(data)
    if size > MAX_TABLE_BYTES or count > _MAX_RECORDS or place + size > len(data):
        raise Malformed("its directory of records does not fit into it")
    found: dict[str, Record] = {}
    for name, record in _entries(data[place : place + size], data):
        if name in found:
            raise Malformed(f"it has the record {quote(name)} twice")
        found[name] = record
    if len(found) != count:
        raise Malformed(f"its directory announces {count} records and has {len(found)}")
    return found


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Number of records, size and place of the directory."""
    tail = bytes(data[-(_END_BYTES + _COMMENT_BYTES) :])
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise Malformed("it has no directory of records: it is truncated")
    end = len(data) - len(tail) + at
    count, size, place = struct.unpack_from("<HII", data, end + 10)
    locator = end - 20
    if locator >= 0 and bytes(data[locator : locator + 4]) == _LOCATOR64:
        (end64,) = struct.unpack_from("<Q", data, locator + 8)
        if end64 + 56 > len(data) or bytes(data[end64 : end64 + 4]) != _END64:
            raise Malformed("the end of its directory is not where it says")
        count, size, place = struct.unpack_from("<QQQ", data, end64 + 32)
    return count, size, place


def _entries(directory: memoryview, data: memoryview) -> Iterator[tuple[str, Record]]:
    at = 0
    while at < len(directory):
        if len(directory) - at < 46 or bytes(directory[at : at + 4]) != _CENTRAL:
            raise Malformed("its directory is not made of entries")
        flags, method = struct.unpack_from("<HH", directory, at + 8)
        packed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<IIHHH", directory, at + 20)
        (local,) = struct.unpack_from("<I", directory, at + 42)
        behind = at + 46 + name_bytes
        name = str(directory[at + 46 : behind], "utf-8", "replace")
        sizes = _wide(directory[behind : behind + extra_bytes], [size, packed, local])
        at = behind + extra_bytes + comment_bytes
        if flags & 1 or method != _STORED or sizes[0] != sizes[1]:
            raise Malformed(f"its record {quote(name)} is compressed or encrypted, which torch.save does not do")
        yield name, _record(data, name, sizes[2], sizes[0])


def _wide(extra: memoryview, values: list[int]) -> list[int]:
    """`values` with those that do not fit into 32 bits from the Zip64 extra field, which has them in this order."""
    at = 0
    while len(extra) - at >= 4:
        kind, size = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + size]
        at += 4 + size
        if kind != 1:
            continue
        wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
        return [next(wide, value) if value == _BEYOND else value for value in values]
    return values


def _record(data: memoryview, name: str, local: int, size: int) -> Record:
    if local + 30 > len(data) or bytes(data[local : local + 4]) != _LOCAL:
        raise Malformed(f"its record {quote(name)} is not where the directory says")
    name_bytes, extra_bytes = struct.unpack_from("<HH", data, local + 26)
    begin = local + 30 + name_bytes + extra_bytes
    if begin + size > len(data):
        raise Malformed(f"its record {quote(name)} reaches beyond its end")
    return Record(begin, begin + size)
