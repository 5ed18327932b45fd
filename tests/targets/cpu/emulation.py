"""A level whose tile instructions are functions in C (amx_emulation.c), so that any CPU with AVX-512 runs its kernels.

Its kernels are those of the level with AMX, but for what the called functions are.
"""

import ctypes
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from dsv3c.runtime.devices.cpu.features import cpu_flags
from dsv3c.targets.cpu.tiles import TILES
from dsv3c.targets.link.platforms import find_c_compiler
from dsv3c.targets.x86.levels import LEVELS

SOURCE = Path(__file__).with_name("amx_emulation.c")

# What an emulated level is made of: the best without tiles that this CPU runs, of the same vectors.
_BASES = [level for level in LEVELS if level.matrix is None and level.lanes == 16]
BASE = next((level for level in reversed(_BASES) if not level.missing(cpu_flags())), _BASES[0])
EMULATED = replace(BASE, name="emulated-amx", matrix="emulated")
TILES["emulated"] = ""  # nothing to import: the functions are found when the library is loaded


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
