"""The emulated tiles compute the meaning of the instructions, and refuse what a CPU refuses."""

import ctypes

import numpy as np
import pytest

from dsv3c.targets.cpu.tiles import ACTIVATIONS, BYTES, CODES, CONFIG_BYTES, ROWS, SUMS, TILES, multiply_meaning
from tests.targets.cpu.emulation import emulation

ACC, X, W = SUMS[0][0], ACTIVATIONS[0], CODES[0]


def config(m=ROWS, k=ROWS, n=ROWS, palette=1, **changes):
    """Tiles of sums [m, n] int32, x [m, 4k] and codes [k, 4n] bytes; changes: single bytes, as at16=3."""
    out = np.zeros(CONFIG_BYTES, np.uint8)
    out[0] = palette
    shapes = {tile: (m, 4 * n) for row in SUMS for tile in row}
    shapes |= dict.fromkeys(ACTIVATIONS, (m, 4 * k)) | dict.fromkeys(CODES, (k, 4 * n))
    for tile, (rows, width) in shapes.items():
        out[16 + 2 * tile], out[48 + tile] = width, rows
    for name, value in changes.items():
        out[int(name.removeprefix("at"))] = value
    return out


def call(name, *arguments):
    function = getattr(emulation(), f"dsv3c_tile_{name}")
    function(*(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in arguments))


def fault():
    found = emulation().amx_fault()
    return found and found.decode()


@pytest.fixture(autouse=True)
def released():
    yield
    call("release")
    assert not emulation().amx_configured()


@pytest.mark.parametrize(("m", "k", "n"), [(16, 16, 16), (16, 8, 16), (1, 8, 16), (7, 3, 5), (15, 16, 1)])
@pytest.mark.parametrize("extreme", [False, True])
def test_product_is_its_meaning(m, k, n, extreme):
    rng = np.random.default_rng(m + k + n)
    x = rng.integers(-128, 128, (m, 4 * k)).astype(np.int8)
    codes = rng.integers(0, 256, (k, n, 4)).astype(np.uint8)
    if extreme:
        x[:], codes[:] = -128, 255
    acc = rng.integers(-(2**30), 2**30, (m, n)).astype(np.int32)
    wide = np.full((m, 100), 77, np.int8)  # rows further apart than they are long
    wide[:, : 4 * k] = x
    out = np.full((ROWS, ROWS), -7, np.int32)
    call("configure", config(m, k, n))
    call(f"load{X}", wide, 100)
    call(f"load{W}", codes, 4 * n)
    call(f"zero{ACC}")
    call(f"multiply{ACC}{X}{W}")
    call(f"multiply{ACC}{X}{W}")
    call(f"store{ACC}", out, BYTES)
    assert fault() is None
    twice = multiply_meaning(multiply_meaning(np.zeros_like(acc), x, codes), x, codes)
    np.testing.assert_array_equal(out[:m, :n], twice)
    assert (out[m:] == -7).all() and (out[:, n:] == -7).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"palette": 2},
        {"at5": 1},  # reserved
        {"at33": 1},  # bytes of a ninth tile
        {"at57": 1},  # rows of a tenth
        {"at16": 65},
        {"at17": 1},  # 320 bytes
        {"at48": 17},
        {"at48": 0},  # bytes without rows
        {"at22": 0},  # rows without bytes
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(changes):
    call("configure", config(**changes))
    assert str(fault()).startswith("LDTILECFG: #GP")
    assert not emulation().amx_configured()


@pytest.mark.parametrize("name", [f"zero{ACC}", f"load{X}", f"store{ACC}", f"multiply{ACC}{X}{W}"])
def test_a_tile_that_is_not_configured_is_refused(name):
    memory = np.zeros(ROWS * BYTES, np.uint8)
    arguments = () if name.startswith(("zero", "multiply")) else (memory, BYTES)
    call(name, *arguments)
    assert "#UD" in str(fault())
    tile = int(name[-1]) if not name.startswith("multiply") else ACC
    call("configure", config(**{f"at{16 + 2 * tile}": 0, f"at{48 + tile}": 0}))
    call(name, *arguments)
    assert "#UD" in str(fault())


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (48 + X, 9, "rows of the sums"),
        (48 + W, 9, "columns of x"),
        (16 + 2 * W, 32, "columns of the sums"),
        (16 + 2 * X, 62, "whole numbers"),
    ],
)
def test_tiles_that_do_not_fit_together_are_refused(place, value, what):
    call("configure", config(**{f"at{place}": value}))
    call(f"multiply{ACC}{X}{W}")
    assert what in str(fault())


def test_a_new_configuration_clears_the_tiles():
    ones, out = np.ones(ROWS * BYTES, np.uint8), np.full(ROWS * BYTES, 9, np.uint8)
    call("configure", config())
    for tile in (X, W):
        call(f"load{tile}", ones, BYTES)
    call(f"zero{ACC}")
    call(f"multiply{ACC}{X}{W}")
    call("configure", config())
    call(f"store{ACC}", out, BYTES)
    assert fault() is None and not out.any()


def test_every_function_of_the_tiles_is_emulated():
    text = TILES["amx_int8"]
    names = [part.split("(")[0] for part in text.split("@dsv3c_tile_")[1:]]
    assert len(names) == len(set(names)) == 18
    assert all(hasattr(emulation(), f"dsv3c_tile_{name}") for name in names)
