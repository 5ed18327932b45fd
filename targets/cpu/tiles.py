"""The tile registers of AMX as kernels name them: eight of up to sixteen rows of 64 bytes, and int8 products of them.

Every instruction is a function in LLVM IR, which kernels import and LLVM inlines. The number of a tile is part of the
instruction, so there is a function a number. A thread configures its tiles before it uses them and releases them after,
so that a switch of threads has none to save.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.targets import tir as T

Expr = Any
Buffer = Any
Array = NDArray[Any]

ROWS, BYTES, CONFIG_BYTES = 16, 64, 64  # of a tile, and of a configuration

# The registers of two weight blocks by two tiles of activation rows.
SUMS = ((0, 1), (2, 3))  # [block][tile]
ACTIVATIONS = (4, 5)
CODES = (6, 7)


def multiply_meaning(acc: Array, x: Array, codes: Array) -> Array:
    """acc i32 [m, n], x i8 [m, 4*k], codes u8 [k, n, 4], of columns 4r to 4r+3 in row r -> i32 [m, n]."""
    columns = codes.transpose(0, 2, 1).reshape(-1, codes.shape[1])
    return np.asarray(acc + x.astype(np.int32) @ columns.astype(np.int32))


def _define(name: str, parameters: str, call: str) -> str:
    return (
        f"define linkonce_odr hidden i32 @dsv3c_tile_{name}({parameters}) alwaysinline nounwind {{ "
        f"call void @llvm.x86.{call} ret i32 0 }}\n"
    )


def _amx_int8() -> str:
    text = [
        "declare void @llvm.x86.ldtilecfg(ptr)\n",
        "declare void @llvm.x86.tilerelease()\n",
        "declare void @llvm.x86.tilezero(i8)\n",
        "declare void @llvm.x86.tileloadd64(i8, ptr, i64)\n",
        "declare void @llvm.x86.tilestored64(i8, ptr, i64)\n",
        "declare void @llvm.x86.tdpbsud(i8, i8, i8)\n",
        _define("configure", "ptr %p", "ldtilecfg(ptr %p)"),
        _define("release", "", "tilerelease()"),
    ]
    place = "ptr %p, i64 %stride"
    for tile in (tile for row in SUMS for tile in row):
        text.append(_define(f"zero{tile}", "", f"tilezero(i8 {tile})"))
        text.append(_define(f"store{tile}", place, f"tilestored64(i8 {tile}, {place})"))
    for tile in (*ACTIVATIONS, *CODES):
        text.append(_define(f"load{tile}", place, f"tileloadd64(i8 {tile}, {place})"))
    for codes, sums in zip(CODES, SUMS, strict=True):
        for x, acc in zip(ACTIVATIONS, sums, strict=True):
            text.append(_define(f"multiply{acc}{x}{codes}", "", f"tdpbsud(i8 {acc}, i8 {x}, i8 {codes})"))
    return "".join(text)


# What kernels that use the tiles must import, by IsaLevel.matrix.
TILES = {"amx_int8": _amx_int8()}


def configure(config: Buffer) -> None:
    """Take the 64 bytes of `config`, as LDTILECFG reads them; all tiles become zero."""
    _call("configure", T.address_of(config[0]))


def release() -> None:
    _call("release")


def zero(tile: int) -> None:
    _call(f"zero{tile}")


def load_tile(tile: int, buffer: Buffer, at: Expr, stride: int) -> None:
    """Rows of the tile from buffer[at] on, `stride` bytes apart."""
    _call(f"load{tile}", T.address_of(buffer[at]), T.int64(stride))


def store_tile(tile: int, buffer: Buffer, at: Expr) -> None:
    """Rows of the tile to buffer[at] on, 64 bytes apart."""
    _call(f"store{tile}", T.address_of(buffer[at]), T.int64(BYTES))


def multiply(acc: int, x: int, codes: int) -> None:
    """int32 acc += int8 x . unsigned codes, see `multiply_meaning`."""
    _call(f"multiply{acc}{x}{codes}")


def _call(name: str, *arguments: Expr) -> None:
    T.evaluate(T.call_extern("int32", f"dsv3c_tile_{name}", *arguments))
