"""The x86-64 levels kernels are built for, the weakest first. A CPU gets the last one that it has all of.

v3 and v4 are the micro-architecture levels of the x86-64 psABI. Those of v3 have sixteen registers of 256 bits, those
of v4 thirty-two of 512. Within each a level is a superset of the one before it.
"""

from __future__ import annotations

from dsv3c.targets.cpu.isa import IsaLevel
from dsv3c.targets.cpu.tuning import Tuning

_V3 = ("avx2", "fma", "f16c", "bmi2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")

_V3_C = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_V4_C = (*_V3_C, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512cd")

_SMALL = Tuning(token_tile=4, row_blocks=1)  # sixteen registers of half the size

# 240 against 435 GFLOP/s for 256 tokens behind 2048, 16 heads of 128/64/128, on two cores of a Zen 5: as fast for 72
# tokens. A latent is converted to float32 each time absorbed attention reads it, and once when it is rebuilt. The
# levels without a rate of their own are within 5 % of the same for both.
_V4_ABSORBED_RATE = 0.55
# 770 against 835 GFLOP/s, measured as above: as fast for 155 tokens.
_BF16_ABSORBED_RATE = 0.92

# Where both forms were as fast behind 2048 with int4-g32, sizes of Moonlight (16 heads), on two cores of a Zen 4: 110
# tokens at x86-64-v3, whose other rates are alike; about 50 at x86-64-v4-vnni, 120 at x86-64-v4-bf16.
_V3_REBUILD_RATE = 1.5
_V4_VNNI_REBUILD_RATE = 1.6
_BF16_REBUILD_RATE = 1.25

# LLVM holds v4 at 256-bit registers unless told otherwise.
LEVELS = (
    IsaLevel(
        "x86-64-v3",
        "x86-64-v3",
        _V3,
        dot="signs256",
        lanes=8,
        cflags=_V3_C,
        tuning=_SMALL,
        rebuild_rate=_V3_REBUILD_RATE,
    ),
    IsaLevel(
        "x86-64-v3-vnni",
        "x86-64-v3",
        (*_V3, "avx_vnni"),
        dot="vnni256",
        lanes=8,
        mattr=("+avxvnni",),
        cflags=(*_V3_C, "-mavxvnni"),
        tuning=_SMALL,
        rebuild_rate=_V3_REBUILD_RATE,  # of instructions that are no slower
    ),
    IsaLevel(
        "x86-64-v4",
        "x86-64-v4",
        _V4,
        dot="madd512",
        lanes=16,
        mattr=("-prefer-256-bit",),
        cflags=_V4_C,
        absorbed_rate=_V4_ABSORBED_RATE,
    ),
    IsaLevel(
        "x86-64-v4-vnni",
        "x86-64-v4",
        (*_V4, "avx512_vnni"),
        dot="vnni512",
        lanes=16,
        mattr=("-prefer-256-bit", "+avx512vnni"),
        cflags=(*_V4_C, "-mavx512vnni"),
        absorbed_rate=_V4_ABSORBED_RATE,
        rebuild_rate=_V4_VNNI_REBUILD_RATE,
    ),
    IsaLevel(
        "x86-64-v4-bf16",
        "x86-64-v4",
        (*_V4, "avx512_vnni", "avx512_bf16"),
        dot="vnni512",
        lanes=16,
        mattr=("-prefer-256-bit", "+avx512vnni", "+avx512bf16"),
        cflags=(*_V4_C, "-mavx512vnni", "-mavx512bf16"),
        dot2="bf16_512",
        absorbed_rate=_BF16_ABSORBED_RATE,
        rebuild_rate=_BF16_REBUILD_RATE,
    ),
    IsaLevel(
        "x86-64-v4-amx",
        "x86-64-v4",
        # Last what the system must be asked for, so that it is asked only where all else is there.
        (*_V4, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
        dot="vnni512",
        lanes=16,
        mattr=("-prefer-256-bit", "+avx512vnni", "+avx512bf16", "+amx-tile", "+amx-int8"),
        cflags=(*_V4_C, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8"),
        dot2="bf16_512",
        matrix="amx_int8",
        absorbed_rate=_BF16_ABSORBED_RATE,  # of the same attention, measured at the level below
        rebuild_rate=_BF16_REBUILD_RATE,  # likewise
    ),
)
