"""The header of a safetensors file, read strictly (format: huggingface/safetensors, `safetensors/src/tensor.rs`).

Beyond the format's own rules every tensor that is mapped starts on a 64-byte boundary of the file, since kernels load
whole vectors from it; between two tensors up to 63 bytes may therefore be padding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.jsonfile import parse_json
from dsv3c.runtime.errors import MalformedJson, WeightsInvalid

ALIGNMENT = 64
HEADER_LIMIT = 64 << 20
MAX_DIMS = 8
DTYPES: Mapping[str, tuple[str, int]] = {  # name in the file: (name in plan.json, bytes of an element)
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_header(descriptor: int) -> dict[str, Tensor]:
    """Tensors by name of the open file. Raises WeightsInvalid for any header that does not describe the file."""
    size = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        raise WeightsInvalid(where="header", reason=f"the file has {size} bytes, fewer than a header needs")
    length = int.from_bytes(prefix, "little")
    if length > HEADER_LIMIT:
        raise WeightsInvalid(where="header", reason=f"its length {length} is above the limit of {HEADER_LIMIT}")
    if 8 + length > size:
        raise WeightsInvalid(where="header", reason=f"its length {length} goes beyond the file of {size} bytes")
    return parse_header(os.pread(descriptor, length, 8), size)


def parse_header(header: bytes, file_size: int) -> dict[str, Tensor]:
    """As `read_header`, from the header's bytes and the size of the whole file."""
    if not header.startswith(b"{"):
        raise WeightsInvalid(where="header", reason="it does not start with '{'")
    try:
        content = Fields(parse_json(header, "header"), "header", WeightsInvalid)
    except MalformedJson as error:
        raise WeightsInvalid(where="header", reason=error.reason) from error  # type: ignore[attr-defined]
    start = 8 + len(header)
    tensors = {name: _tensor(content, name, start) for name in content.value if name != "__metadata__"}
    _check_metadata(content.value.get("__metadata__", {}))
    _check_layout(tensors, start, file_size)
    return tensors


def _tensor(content: Fields, name: str, start: int) -> Tensor:
    fields = content.object(name)
    dtype = fields.string("dtype")
    if dtype not in DTYPES:
        raise fields.fail("dtype", f"{dtype!r} is unknown")
    shape = fields.list("shape")
    if len(shape) > MAX_DIMS or not all(type(dim) is int and 0 <= dim < 2**48 for dim in shape):
        raise fields.fail("shape", f"must be at most {MAX_DIMS} integers that are not negative")
    offsets = fields.list("data_offsets")
    if len(offsets) != 2 or not all(type(offset) is int and 0 <= offset < 2**63 for offset in offsets):
        raise fields.fail("data_offsets", "must be two integers that are not negative")
    begin, end = offsets
    if end < begin:
        raise fields.fail("data_offsets", f"end {end} lies before begin {begin}")
    expected = prod(shape) * DTYPES[dtype][1]
    if end - begin != expected:
        raise fields.fail("data_offsets", f"cover {end - begin} bytes, shape and dtype need {min(expected, 2**64)}")
    return Tensor(DTYPES[dtype][0], tuple(shape), start + begin, end - begin)


def _check_metadata(metadata: Any) -> None:
    strings = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    if not strings:
        raise WeightsInvalid(where="header.__metadata__", reason="must map strings to strings")


def _check_layout(tensors: dict[str, Tensor], start: int, file_size: int) -> None:
    end, previous = start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if tensor.offset < end:
            raise WeightsInvalid(where=name, reason=f"overlaps {previous}")
        if tensor.offset - end >= ALIGNMENT:
            raise WeightsInvalid(where=name, reason=f"leaves a hole of {tensor.offset - end} bytes after {previous}")
        if tensor.offset + tensor.bytes > file_size:
            raise WeightsInvalid(where=name, reason=f"goes beyond the end of the file ({file_size} bytes)")
        end, previous = tensor.offset + tensor.bytes, name
    if file_size - end >= ALIGNMENT:
        raise WeightsInvalid(where="end of the file", reason=f"{file_size - end} bytes belong to no tensor")
