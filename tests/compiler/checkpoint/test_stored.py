from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dsv3c.compiler.checkpoint import stored as stored_module
from dsv3c.compiler.checkpoint.errors import NonFiniteWeightError, ScaleValueError
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.checkpoint.stored import StoredTensor, StoredWeight
from tests.checkpoints import write_safetensors

E4M3 = ml_dtypes.float8_e4m3fn


def weight(tmp_path: Path, value: np.ndarray, scale: np.ndarray | None = None, **fields: Any) -> StoredWeight:
    tensors = {"w": value} | ({} if scale is None else {"w_scale_inv": scale})
    write_safetensors(tmp_path / "a.safetensors", tensors)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    if scale is not None:
        fields["scale"] = StoredTensor(file, file.tensors["w_scale_inv"])
    return StoredWeight(StoredTensor(file, file.tensors["w"]), **fields)


def dequantize(codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """By the definition: element by element."""
    out = np.empty(codes.shape, np.float32)
    for i, j in np.ndindex(codes.shape):
        out[i, j] = codes[i, j].astype(np.float32) * scale[i // block[0], j // block[1]].astype(np.float32)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (1, 1)])
def test_plain_values_are_exact(dtype: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    value = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = weight(tmp_path, value).decode()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value.astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (5, 7), (16, 3), (3, 16)])
@pytest.mark.parametrize("block", [(1, 1), (2, 3), (4, 4), (3, 128), (128, 2)])
@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16])
def test_fp8_blocks(shape: tuple[int, int], block: tuple[int, int], scale_dtype: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes = (rng.standard_normal(shape) * 100).astype(E4M3)
    grid = tuple(-(-extent // size) for extent, size in zip(shape, block, strict=True))
    scale = rng.uniform(1e-4, 3, grid).astype(scale_dtype)
    found = weight(tmp_path, codes, scale, block=block).decode()
    np.testing.assert_array_equal(found, dequantize(codes, scale, block))


def test_every_fp8_code(tmp_path: Path) -> None:
    codes = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8).view(E4M3).reshape(2, 127)
    found = weight(tmp_path, codes, np.ones((1, 1), np.float32), block=(128, 128)).decode()
    np.testing.assert_array_equal(found, codes.astype(np.float32))


def test_part_of_a_fused_stack_with_blocks_across_the_halves(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    codes = rng.standard_normal((3, 10, 6)).astype(E4M3)
    scale = rng.uniform(0.5, 2, (3, 3, 2)).astype(np.float32)
    for expert in range(3):
        whole = dequantize(codes[expert], scale[expert], (4, 4))
        up = weight(tmp_path, codes, scale, block=(4, 4), expert=expert, rows=(5, 10))
        assert up.shape == (5, 6)
        np.testing.assert_array_equal(up.decode(), whole[5:])


def test_chunks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    codes = rng.standard_normal((1000, 13)).astype(E4M3)
    scale = rng.uniform(0.5, 2, (143, 3)).astype(np.float32)
    whole = weight(tmp_path, codes, scale, block=(7, 5)).decode()
    for chunk in (1, 13, 100, 5000):
        monkeypatch.setattr(stored_module, "_CHUNK", chunk)
        np.testing.assert_array_equal(weight(tmp_path, codes, scale, block=(7, 5)).decode(), whole)
    np.testing.assert_array_equal(whole[700:703, 4:6], dequantize(codes, scale, (7, 5))[700:703, 4:6])


def test_out_is_written(tmp_path: Path) -> None:
    out = np.zeros((2, 4), np.float32)
    weight(tmp_path, np.ones(4, np.float32)).decode(out[1])
    np.testing.assert_array_equal(out, [[0] * 4, [1] * 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_value_that_is_not_finite(bad: float, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_CHUNK", 8)
    value = np.ones((6, 4), dtype)
    value[4, 3] = bad
    with pytest.raises(NonFiniteWeightError, match=rf"a.safetensors: 'w' is {float(bad)} at \[4, 3\]"):
        weight(tmp_path, value).decode()
    stack = np.ones((2, 6, 4), dtype)
    stack[1, 4, 3] = bad
    with pytest.raises(NonFiniteWeightError, match=r"at \[1, 4, 3\]"):
        weight(tmp_path, stack, expert=1, rows=(3, 6)).decode()
    weight(tmp_path, stack, expert=1, rows=(0, 3)).decode()


def test_fp8_nan_and_overflow(tmp_path: Path) -> None:
    codes = np.full((2, 2), 448, E4M3)
    with pytest.raises(NonFiniteWeightError, match="inf"):
        weight(tmp_path, codes, np.full((1, 1), 3e38, np.float32), block=(2, 2)).decode()
    codes[1, 0] = np.nan
    with pytest.raises(NonFiniteWeightError, match=r"nan at \[1, 0\]"):
        weight(tmp_path, codes, np.ones((1, 1), np.float32), block=(2, 2)).decode()


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, np.nan, np.inf])
def test_a_bad_scale(bad: float, tmp_path: Path) -> None:
    scale = np.ones((2, 2), np.float32)
    scale[1, 0] = bad
    with pytest.raises(ScaleValueError, match=rf"'w_scale_inv' is {bad} at \[1, 0\]"):
        weight(tmp_path, np.ones((4, 4), E4M3), scale, block=(2, 2)).decode()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
def test_plain_numbers_are_mapped_until_the_last_view_of_them_goes(
    dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(dtype)
    released = list[tuple[int, int]]()
    monkeypatch.setattr(StoredTensor, "release", lambda self, first, last: released.append((first, last)))
    found = weight(tmp_path, value, expert=2, rows=(1, 3)).plain()
    assert found is not None and found.dtype == dtype and not found.flags.writeable
    view = found.reshape(-1)[3:]
    np.testing.assert_array_equal(found, value[2, 1:3])
    del found
    assert not released and view[0] == value[2, 1, 3]
    del view
    assert released == [(9, 11)]


def test_codes_are_no_plain_numbers(tmp_path: Path) -> None:
    codes, scale = np.ones((4, 4), E4M3), np.ones((1, 1), np.float32)
    assert weight(tmp_path, codes, scale, block=(4, 4)).plain() is None
