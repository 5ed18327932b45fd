"""Reader of the safetensors format, as strict as its reference implementation.

Format: 8 bytes little-endian length n, n bytes of a JSON object {name: {dtype, shape, data_offsets}}, then the data of
the tensors, which the offsets must cover without gap or overlap (github.com/huggingface/safetensors, `tensor.rs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import SafetensorsError
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, parse_object, quote
from dsv3c.compiler.checkpoint.mapped import TensorFile, TensorInfo

MAX_DIMS = 8  # the format has no bound; weights of models have four at most
MAX_COUNT = 2**63 - 1
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# What numpy has no type for is seen as unsigned integers of the same width.
NUMPY_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8", "BF16": "<u2",
}  # fmt: skip


class SafetensorsFile(TensorFile):
    """One open file; `tensors` holds its header."""

    fault = SafetensorsError

    def __init__(self, path: Path) -> None:
        """Raises as TensorFile, SafetensorsError for anything that breaks the format."""
        super().__init__(path)
        body = 8 + _header_length(self._map[:8], self.size, path)
        self.tensors, self.metadata = parse_header(self._map[8:body], self.size - body, path, body)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """BF16 and the F8 types come as their bit patterns (uint16, uint8), types below a byte as flat uint8."""
        info = self.tensors[name]
        shape = info.shape if DTYPE_BITS[info.dtype] >= 8 else (info.end - info.begin,)
        return self._view(info, np.dtype(NUMPY_DTYPES.get(info.dtype, "u1")), shape)


def parse_header(
    text: bytes, body_size: int, path: Path, body_offset: int = 0
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of the JSON header `text` of a file with `body_size` bytes of data.

    `path` is for messages, `body_offset` is added to all offsets. Raises SafetensorsError.
    """
    if not text.startswith(b"{"):
        raise SafetensorsError(path=path, reason="the header is not a JSON object")
    try:
        header = parse_object(text)
    except ValueError as error:
        raise SafetensorsError(path=path, reason=f"the header is not valid JSON: {error}") from error
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # null counts as absent, as for the reference
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError(path=path, reason="__metadata__ is not an object of strings")
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        try:
            tensors[name] = _tensor_info(name, entry, body_offset)
        except ValueError as error:
            raise SafetensorsError(path=path, reason=f"tensor {quote(name)}: {error}") from error
    _check_cover(tensors, body_size, body_offset, path)
    return tensors, metadata


def _header_length(prefix: bytes, size: int, path: Path) -> int:
    """Raises SafetensorsError when it cannot be true."""
    if len(prefix) < 8:
        raise SafetensorsError(path=path, reason=f"it has {size} bytes, fewer than the 8 of a header length")
    length = int.from_bytes(prefix, "little")
    if length > MAX_TABLE_BYTES:
        raise SafetensorsError(path=path, reason=f"header length {length} is above the limit {MAX_TABLE_BYTES}")
    if length > size - 8:
        raise SafetensorsError(path=path, reason=f"header length {length} reaches beyond the file of {size} bytes")
    return length


def _tensor_info(name: str, entry: Any, body_offset: int) -> TensorInfo:
    """Raises ValueError with the reason for anything wrong with one entry of the header."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected an object, found {quote(entry)}")
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"expected the keys dtype, shape and data_offsets, found {quote(sorted(entry))}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {quote(dtype)}")
    if isinstance(shape, list) and len(shape) > MAX_DIMS:
        raise ValueError(f"shape {quote(shape)} has {len(shape)} dims, at most {MAX_DIMS} are read")
    if not isinstance(shape, list) or not all(_is_count(extent) for extent in shape):
        raise ValueError(f"shape {quote(shape)} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise ValueError(f"data_offsets {quote(offsets)} are not two offsets")
    begin, end = offsets
    if begin > end:
        raise ValueError(f"data_offsets {offsets} are reversed")
    if math.prod(extent or 1 for extent in shape) * DTYPE_BITS[dtype] > MAX_COUNT:
        raise ValueError(f"shape {quote(shape)} overflows")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8:
        raise ValueError(f"{bits} bits are not a whole number of bytes")
    if end - begin != bits // 8:
        raise ValueError(f"shape {quote(shape)} of {dtype} takes {bits // 8} bytes, the offsets give {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), begin + body_offset, end + body_offset)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT  # a bool is not a size


def _check_cover(tensors: Mapping[str, TensorInfo], body_size: int, body_offset: int, path: Path) -> None:
    """Raises SafetensorsError unless the tensors cover the data exactly once."""
    covered = body_offset
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != covered:
            kind = "overlaps the tensor before it" if info.begin < covered else "leaves a hole before it"
            raise SafetensorsError(path=path, reason=f"tensor {quote(info.name)} {kind}")
        covered = info.end
    found = body_size + body_offset
    if covered > found:
        raise SafetensorsError(path=path, reason=f"it is truncated: {covered} bytes are needed, it has {found}")
    if covered < found:
        raise SafetensorsError(path=path, reason=f"{found - covered} bytes follow the last tensor")
