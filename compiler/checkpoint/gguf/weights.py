"""Weights in the blocks of GGUF: read as codes where a format of ours has their grid, else decoded.

Blocks as in llama.cpp, ggml/src/ggml-common.h and ggml-quants.c (`dequantize_row_*`). Of 32 weights:

    Q8_0   scale f16, 32 codes i8                       code * scale
    Q4_0   scale f16, 16 bytes                          (code - 8) * scale
    Q5_0   scale f16, 32 fifth bits, 16 bytes           (code - 16) * scale
    MXFP4  exponent u8, 16 bytes                        e2m1(code) * 2^(exponent - 127)

Weight i of a block has the lower half of byte i, weight i + 16 the upper one. Scales may be below 0. All other types
are decoded by the package gguf.

kv_b_proj [H * (nope + v), latent] is stored in halves: of each head k_b, turned [H, latent, nope], and v_b
[H, v, latent] (llama.cpp, conversion/deepseek.py, `modify_tensors`). Neither is permuted further, and no other tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.compiler.checkpoint.errors import GgufMissingError, NonFiniteWeightError, ScaleValueError
from dsv3c.compiler.checkpoint.gguf.container import BLOCKS, FLOATS
from dsv3c.compiler.checkpoint.gguf.names import K_B, V_B
from dsv3c.compiler.checkpoint.quantised.weight import Coded, CodedWeight, Stack, Stored, Weight, tensor_of, unpack
from dsv3c.compiler.checkpoint.stored import Float32, StoredTensor, StoredWeight
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.keeping import Coding
from dsv3c.compiler.formats.rounding import chunks

Array = NDArray[Any]
GROUP = 32
_KV_B = "self_attn.kv_b_proj.weight"
_TYPES = (*FLOATS, *BLOCKS)


@dataclass(frozen=True)
class Blocks:
    """How the matrices of a GGUF file are read; the sizes are those of one head's part of kv_b_proj."""

    heads: int
    nope: int
    value: int

    def find(self, name: str, shape: tuple[int, ...], stored: Stored) -> Weight | None:
        """As Quantisation. Of a vector None, as those are floats."""
        if name.endswith(_KV_B) and name not in stored:
            return self._halves(name, shape[-1], stored)
        return _find(name, shape, stored) if len(shape) > 1 else None

    def _halves(self, name: str, latent: int, stored: Stored) -> Weight | None:
        k = _find(name.replace(_KV_B, K_B), (self.heads, latent, self.nope), stored)
        v = _find(name.replace(_KV_B, V_B), (self.heads, self.value, latent), stored)
        return Halves(k, v, (self.heads, self.nope, self.value, latent)) if k and v else None


def _find(name: str, shape: tuple[int, ...], stored: Stored) -> Stack | None:
    tensor = tensor_of(stored, name, [shape], _TYPES)
    if tensor is None or tensor.info.dtype in FLOATS:
        return None if tensor is None else StoredWeight(tensor)
    *stack, rows, columns = shape
    read = _READERS.get(tensor.info.dtype)
    if read is None:
        return BlockWeight(tensor, (rows, columns), stack[0] if stack else None)
    coding, codes = read

    def find_codes(expert: int | None) -> Coded:
        return codes(tensor, expert)

    return CodedWeight((tensor,), (rows, columns), coding, find_codes, stack[0] if stack else None)


@dataclass(frozen=True)
class BlockWeight:
    """A matrix of blocks that no format of ours can keep. stack, expert, rows: as CodedWeight has them."""

    tensor: StoredTensor
    matrix: tuple[int, int]
    stack: int | None = None
    expert: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.tensor.info.name,)

    @property
    def coding(self) -> Coding | None:
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        first, last = self.rows or (0, self.matrix[0])
        return (last - first, self.matrix[1])

    def cut(self, expert: int, rows: tuple[int, int]) -> BlockWeight:
        return replace(self, expert=expert, rows=rows)

    def decode(self, out: Float32 | None = None) -> Float32:
        """Raises GgufMissingError, NonFiniteWeightError, ChangedFileError."""
        decode = _decoder(self.tensor.info.dtype)
        blocks, first = _matrix(self.tensor, self.expert), self.rows[0] if self.rows else 0
        above = 0 if self.expert is None else self.expert * self.matrix[0]
        out = np.empty(self.shape, np.float32) if out is None else out
        for chunk in chunks(*self.shape):
            within = slice(first + chunk.start, min(first + chunk.stop, first + self.shape[0]))
            with np.errstate(over="ignore", invalid="ignore"):
                out[chunk] = decode(blocks[within])
            _check_finite(self.tensor, out[chunk], self.expert, within.start)
            self.tensor.release(above + within.start, above + within.stop)
        return out

    def coded(self) -> Array:
        return self.decode()


@dataclass(frozen=True)
class Halves:
    """kv_b_proj of k_b and v_b. sizes: heads, nope, value, latent."""

    k: Stack
    v: Stack
    sizes: tuple[int, int, int, int]

    @property
    def names(self) -> tuple[str, ...]:
        return self.k.names + self.v.names

    @property
    def shape(self) -> tuple[int, ...]:
        heads, nope, value, latent = self.sizes
        return (heads * (nope + value), latent)

    @property
    def coding(self) -> Coding | None:
        """Groups of k_b lie across kv_b_proj, so its rows are rounded again, which was measured to cost nothing: the
        bundled model in Q4_0 has the same KL divergence with kv_b_proj in int8, 0.0663 nats, as so, 0.0664."""
        return self.k.coding if self.k.coding == self.v.coding else None

    def decode(self, out: Float32 | None = None) -> Float32:
        found = np.empty(self.shape, np.float32) if out is None else out
        self._fill(found, lambda weight: weight.decode())
        return found

    def coded(self) -> Array:
        if self.coding is None:
            return self.decode()
        found = np.empty(self.shape, self.coding.kind)
        self._fill(found, lambda weight: weight.coded())
        return found

    def _fill(self, out: Array, read: Callable[[Weight], Array]) -> None:
        heads, nope, value, latent = self.sizes
        by_head = out.reshape(heads, nope + value, latent)
        for head in range(heads):
            by_head[head, :nope] = read(self.k.cut(head, (0, latent))).T
            by_head[head, nope:] = read(self.v.cut(head, (0, value)))


def _matrix(tensor: StoredTensor, expert: int | None) -> Array:
    """u8 [N, bytes a row] of a matrix, or of one of a stack."""
    stored = tensor.array()
    return stored if expert is None else stored[expert]


def _blocks(tensor: StoredTensor, expert: int | None, nbytes: int) -> Array:
    """u8 [N, KG, bytes a block]."""
    stored = _matrix(tensor, expert)
    return stored.reshape(len(stored), -1, nbytes)


def _q8_0(tensor: StoredTensor, expert: int | None) -> Coded:
    blocks = _blocks(tensor, expert, 34)
    return _integers(tensor, expert, blocks, blocks[..., 2:] ^ np.uint8(0x80), 128)


def _q4_0(tensor: StoredTensor, expert: int | None) -> Coded:
    blocks = _blocks(tensor, expert, 18)
    return _integers(tensor, expert, blocks, _halves_of(blocks[..., 2:]), 8)


def _q5_0(tensor: StoredTensor, expert: int | None) -> Coded:
    blocks = _blocks(tensor, expert, 22)
    fifth = unpack(blocks[..., 2:6], 1, GROUP)
    return _integers(tensor, expert, blocks, _halves_of(blocks[..., 6:]) | (fifth << np.uint8(4)), 16)


def _integers(tensor: StoredTensor, expert: int | None, blocks: Array, codes: Array, zero: int) -> Coded:
    """codes u8 [N, KG, GROUP]; the scales are the first two bytes of each block."""
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    _check_finite(tensor, scale, expert, 0, GROUP)
    rows, groups = scale.shape
    zeros = np.full(scale.shape, zero, np.uint8)
    return Coded(codes.reshape(rows, -1), scale, zeros, np.arange(groups * GROUP) // GROUP)


def _mxfp4(tensor: StoredTensor, expert: int | None) -> Coded:
    blocks = _blocks(tensor, expert, 17)
    exponents = np.ascontiguousarray(blocks[..., 0])
    wrong = np.argwhere(exponents == 255)
    if wrong.size:
        position = ([] if expert is None else [expert]) + wrong[0].tolist()
        name, path = tensor.info.name, tensor.file.path
        raise ScaleValueError(path=path, tensor=name, found=float("nan"), position=position)
    codes = _halves_of(blocks[..., 1:])
    return Coded(codes.reshape(len(codes), -1), exponents, None, np.arange(blocks.shape[1] * GROUP) // GROUP)


def _halves_of(data: Array) -> Array:
    """u8 [..., 32] of bytes [..., 16]: all lower halves, then all upper ones."""
    return np.concatenate((data & np.uint8(15), data >> np.uint8(4)), axis=-1)


_READERS: Mapping[str, tuple[Coding, Callable[[StoredTensor, int | None], Coded]]] = {
    "Q8_0": (Coding(coded.INTEGERS, 8, GROUP), _q8_0),
    "Q5_0": (Coding(coded.INTEGERS, 5, GROUP), _q5_0),
    "Q4_0": (Coding(coded.INTEGERS, 4, GROUP), _q4_0),
    "MXFP4": (Coding(coded.E2M1, 4, GROUP), _mxfp4),
}
KEPT = tuple(_READERS)


def _decoder(kind: str) -> Callable[[Array], Array]:
    """f32 [N, K] of u8 [N, bytes a row]. Raises GgufMissingError."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise GgufMissingError(format=kind) from error
    number = GGMLQuantizationType[kind]
    return lambda rows: quants.dequantize(np.ascontiguousarray(rows), number)


def _check_finite(tensor: StoredTensor, found: Array, expert: int | None, first_row: int, wide: int = 1) -> None:
    """Raises NonFiniteWeightError. wide: how many columns a number of `found` [N, …] stands for."""
    finite = np.isfinite(found)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0].tolist()
    position = ([] if expert is None else [expert]) + [first_row + row, column * wide]
    name, path = tensor.info.name, tensor.file.path
    raise NonFiniteWeightError(path=path, tensor=name, found=float(found[row, column]), position=position)
