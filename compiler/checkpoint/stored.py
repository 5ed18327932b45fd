"""One weight as it is stored, and its decoding to float32.

fp8: DeepSeek-V3's format, float8_e4m3 values with one float32 scale a block beside them (`weight_scale_inv`), the last
block of a dimension being partial (github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md); value = code * scale. With
`scale_fmt: ue8m0` the scales are powers of two, as float32 or as their exponents, float8_e8m0fnu.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from dsv3c.compiler.checkpoint.errors import NonFiniteWeightError, SameTensorError, ScaleValueError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.mapped import TensorFile, TensorInfo
from dsv3c.compiler.formats import coded, fp8
from dsv3c.compiler.formats.keeping import Coding

Float32 = np.ndarray[Any, np.dtype[np.float32]]
FLOAT_DTYPES = ("F32", "F16", "BF16")
SCALE_DTYPES = (*FLOAT_DTYPES, "F8_E8M0")
WEIGHT_DTYPES = (*FLOAT_DTYPES, "F8_E4M3")
_CHUNK = 1 << 22  # elements decoded at a time: what temporary arrays are allowed to take
_E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file. name_in_file: where that is not the name by which the model knows it."""

    file: TensorFile
    info: TensorInfo
    name_in_file: str | None = None

    def array(self) -> np.ndarray[Any, Any]:
        return self.file.array(self.name_in_file or self.info.name)

    def release(self, first: int, last: int) -> None:
        """Drop the pages of the rows [first, last), counted through all matrices of a stack."""
        rows = math.prod(self.info.shape[:-1] if len(self.info.shape) > 1 else self.info.shape)
        stride = (self.info.end - self.info.begin) // rows
        self.file.release(self.info.begin + first * stride, self.info.begin + last * stride)


def renamed(tensors: Iterable[tuple[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Tensors by the names beside them, which they then have. Raises SameTensorError where two get the same."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors:
        if name in found:
            first, second = (quote(each.name_in_file or each.info.name) for each in (found[name], tensor))
            raise SameTensorError(path=tensor.file.path, first=first, second=second)
        in_file = tensor.name_in_file or tensor.info.name
        info = tensor.info if tensor.info.name == name else replace(tensor.info, name=name)
        found[name] = StoredTensor(tensor.file, info, None if in_file == name else in_file)
    return found


@dataclass(frozen=True)
class StoredWeight:
    """A vector or matrix, which can be a part of a stored tensor.

    `expert` selects along the first of three dimensions, `rows` along the rows of what is left. `scale` is divided into
    blocks of `block`, which start at the first row of the stored matrix.
    """

    tensor: StoredTensor
    scale: StoredTensor | None = None
    block: tuple[int, int] = (1, 1)
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stored tensors it is made of."""
        return tuple(tensor.info.name for tensor in (self.tensor, self.scale) if tensor is not None)

    @property
    def coding(self) -> Coding | None:
        """How it is stored in codes."""
        if self.scale is None or self.tensor.info.dtype != "F8_E4M3":
            return None
        rows, columns = self.block
        square = rows % fp8.BLOCK == 0 or rows >= self.tensor.info.shape[-2]
        return Coding(fp8.CODED, 8, 0 if columns >= self.shape[-1] else columns, square=square)

    def cut(self, expert: int, rows: tuple[int, int]) -> StoredWeight:
        return replace(self, expert=expert, rows=rows)

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.tensor.info.shape if self.expert is None else self.tensor.info.shape[1:]
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    def decode(self, out: Float32 | None = None) -> Float32:
        """The values, written to `out` when it is given.

        Raises NonFiniteWeightError and ScaleValueError, ChangedFileError when the file was cut since it was opened.
        """
        out = np.empty(self.shape, np.float32) if out is None else out
        scale = self._scales()
        for row, stored, rows in self._chunks():
            chunk = out[rows]
            _decode(stored, self.tensor.info.dtype, chunk)
            if scale is not None:
                _multiply_scales(chunk, scale, self.block, row)
            self._check_finite(chunk, row)
        return out

    def plain(self) -> np.ndarray[Any, Any] | None:
        """The numbers as the file has them, float32, float16 or bfloat16, unchecked; None for codes.

        They lie in mapped pages, which the system may have back when the last view of them is gone. Raises
        ChangedFileError.
        """
        if self.tensor.info.dtype not in FLOAT_DTYPES or self.scale is not None:
            return None
        first, last = self.rows or (0, self.shape[0])
        whole = self.tensor.array()
        matrix, above = self._matrix_of(whole)
        owner = whole.base if isinstance(whole.base, np.ndarray) else whole
        weakref.finalize(owner, self.tensor.release, above + first, above + last).atexit = False
        stored = matrix[first:last]
        return stored.view(ml_dtypes.bfloat16) if self.tensor.info.dtype == "BF16" else stored

    def coded(self) -> np.ndarray[Any, Any]:
        """fp8.CODED of a weight that is stored so, else what `decode` gives. Raises what `decode` raises."""
        if self.scale is None or self.tensor.info.dtype != "F8_E4M3":
            return self.decode()
        out = np.empty(self.shape, fp8.CODED)
        scale = self._scales()
        assert scale is not None
        for row, stored, rows in self._chunks():
            chunk = out[rows]
            chunk["code"] = stored
            chunk["scale"] = _spread(scale, self.block, row, *chunk.shape)
            with np.errstate(over="ignore"):
                self._check_finite(fp8.values(chunk), row)
        return out

    def _chunks(self) -> Iterator[tuple[int, np.ndarray[Any, Any], slice]]:
        """(the first row's number in the stored matrix, the stored rows, where in the weight they belong) of each part.

        The pages of a part are dropped when the next is asked for.
        """
        first, last = self.rows or (0, self.shape[0])
        matrix, above = self._matrix_of(self.tensor.array())
        step = max(1, _CHUNK // math.prod(self.shape[1:]))
        for row in range(first, last, step):
            stop = min(row + step, last)
            yield row, matrix[row:stop], slice(row - first, stop - first)
            self.tensor.release(above + row, above + stop)

    def _matrix_of(self, stored: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
        """The expert's of a stack, with the number of rows above it; what is no stack as it is."""
        if self.expert is None:
            return stored, 0
        return stored[self.expert], self.expert * stored.shape[1]

    def _scales(self) -> Float32 | None:
        """float32 [row blocks, column blocks]."""
        if self.scale is None:
            return None
        stored = self.scale.array()
        stored = stored if self.expert is None else stored[self.expert]
        scale = decoded(stored, self.scale.info.dtype)
        good = np.isfinite(scale) & (scale > 0)
        if good.all():
            return scale.reshape(-1, scale.shape[-1]) if scale.ndim == 2 else scale.reshape(-1, 1)
        position = tuple(np.argwhere(~good)[0].tolist())
        where = list(position if self.expert is None else (self.expert, *position))
        name, path = self.scale.info.name, self.scale.file.path
        raise ScaleValueError(path=path, tensor=name, found=float(scale[position]), position=where)

    def _check_finite(self, chunk: Float32, first_row: int) -> None:
        finite = np.isfinite(chunk)
        if finite.all():
            return
        row, *rest = np.argwhere(~finite)[0].tolist()
        found = float(chunk[(row, *rest)])
        position = [first_row + row, *rest]
        if self.expert is not None:
            position.insert(0, self.expert)
        name, path = self.tensor.info.name, self.tensor.file.path
        raise NonFiniteWeightError(path=path, tensor=name, found=found, position=position)


def decoded(stored: np.ndarray[Any, Any], dtype: str) -> Float32:
    """The float32 numbers of an array as a file has it, of WEIGHT_DTYPES or SCALE_DTYPES."""
    if dtype == "F8_E8M0":
        found: Float32 = coded.power_of_two(stored)
        return found
    out = np.empty(stored.shape, np.float32)
    _decode(stored, dtype, out)
    return out


def _decode(stored: np.ndarray[Any, Any], dtype: str, out: Float32) -> None:
    if dtype == "F8_E4M3":
        np.take(_E4M3, stored, out=out, mode="clip")  # all codes are in range: `clip` only spares a buffer
    elif dtype == "BF16":
        np.left_shift(stored, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = stored


def _multiply_scales(chunk: Float32, scale: Float32, block: tuple[int, int], first_row: int) -> None:
    """`chunk` [rows, columns] times the scale of each element's block; its rows are first_row, first_row + 1, …"""
    with np.errstate(over="ignore"):  # infinity is reported by the check that follows
        np.multiply(chunk, _spread(scale, block, first_row, *chunk.shape), out=chunk)


def _spread(scale: Float32, block: tuple[int, int], first_row: int, rows: int, columns: int) -> Float32:
    """The scale of each element of `rows` rows from `first_row` on, float32 [rows, columns]."""
    row_blocks = (first_row + np.arange(rows)) // block[0]
    return scale[:, np.arange(columns) // block[1]][row_blocks]
