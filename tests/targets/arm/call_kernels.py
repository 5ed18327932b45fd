"""Runs inside the emulator: calls kernels of a library, one after the other, on arrays from a file.

`call_kernels.py LIBRARY CALLS.json IN.npz OUT.npz`: each call is [number, kernel, [roles]], its arrays are
"number.role" in IN.npz; OUT.npz gets all of them as they are after the call.
"""

import ctypes
import json
import sys

import numpy as np
import tvm_ffi


def aligned(values: np.ndarray) -> np.ndarray:
    raw = np.zeros(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + values.nbytes].view(values.dtype)
    out[:] = values
    return out


library, calls, given, results = sys.argv[1:]
kernels = tvm_ffi.load_module(library)
ctypes.CDLL(library).dsv3c_threads(3)
found = {}
with np.load(given) as stored, open(calls, encoding="utf-8") as file:
    for number, name, roles in json.load(file):
        arrays = {f"{number}.{role}": aligned(stored[f"{number}.{role}"]) for role in roles}
        kernels[name](*[tvm_ffi.from_dlpack(array) for array in arrays.values()])
        found |= arrays
np.savez(results, **found)
