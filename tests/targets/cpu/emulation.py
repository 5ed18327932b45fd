"""Levels whose instructions are functions, so that CPUs without these run their kernels.

AMX: functions in C (amx_emulation.c), on any CPU with AVX-512. AVX-VNNI: LLVM IR, on any with AVX2. The kernels are
those of the levels themselves, but for what the called functions are.
"""

import ctypes
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from dsv3c.runtime.devices.cpu.features import cpu_flags
from dsv3c.targets import tir as T
from dsv3c.targets.cpu.intrinsics import DOT4
from dsv3c.targets.cpu.tiles import TILES
from dsv3c.targets.link.platforms import find_c_compiler
from dsv3c.targets.x86.levels import LEVELS

SOURCE = Path(__file__).with_name("amx_emulation.c")

# What the level with emulated tiles is made of: the best without tiles that this CPU runs, of the same vectors.
_BASES = [level for level in LEVELS if level.matrix is None and level.lanes == 16]
BASE = next((level for level in reversed(_BASES) if not level.missing(cpu_flags())), _BASES[0])
EMULATED = replace(BASE, name="emulated-amx", matrix="emulated")
TILES["emulated"] = ""  # nothing to import: the functions are found when the library is loaded

_QUARTERS = "\n".join(  # p0 to p3: the first, second, third and fourth byte's product of each lane
    f"%p{j} = shufflevector <32 x i32> %products, <32 x i32> poison, <8 x i32> "
    f"<{', '.join(f'i32 {lane}' for lane in range(j, 32, 4))}>"
    for j in range(4)
)
_DPBUSD = f"""
define linkonce_odr hidden <8 x i32> @emulated_dpbusd(<8 x i32> %acc, <8 x i32> %codes, i32 %x) alwaysinline nounwind {{
  %word = insertelement <8 x i32> poison, i32 %x, i32 0
  %words = shufflevector <8 x i32> %word, <8 x i32> poison, <8 x i32> zeroinitializer
  %signed = bitcast <8 x i32> %words to <32 x i8>
  %unsigned = bitcast <8 x i32> %codes to <32 x i8>
  %a = zext <32 x i8> %unsigned to <32 x i32>
  %b = sext <32 x i8> %signed to <32 x i32>
  %products = mul <32 x i32> %a, %b
  {_QUARTERS}
  %s0 = add <8 x i32> %p0, %p1
  %s1 = add <8 x i32> %p2, %p3
  %s = add <8 x i32> %s0, %s1
  %sum = add <8 x i32> %acc, %s
  ret <8 x i32> %sum
}}
"""


def _dpbusd(acc, codes, x):
    return T.call_extern("int32x8", "emulated_dpbusd", acc, codes, x)


DOT4["emulated-vnni256"] = replace(DOT4["vnni256"], emit=_dpbusd, llvm=DOT4["vnni256"].llvm + _DPBUSD)
EMULATED_VNNI = replace(LEVELS[0], name="emulated-avx-vnni", dot="emulated-vnni256")


@cache
def emulation():
    """The library, its symbols there for kernel libraries that are loaded after it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "amx_emulation.so")
        flags = ["-O2", "-std=gnu11", "-Wall", "-Werror", "-fPIC", "-shared"]
        subprocess.run([*find_c_compiler(), *flags, "-o", str(path), str(SOURCE)], check=True)
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.amx_fault.restype = ctypes.c_char_p
    library.amx_products.restype = ctypes.c_long
    return library
