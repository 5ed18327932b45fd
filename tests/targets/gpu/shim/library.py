"""Kernels as a library of this CPU: C++ with the header of a dialect, run on numpy arrays by the fibers of fibers.h."""

import ctypes
import hashlib
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dsv3c.runtime.devices.cpu.cores import usable_cpus

FOLDER = Path(__file__).parent
BUILT = FOLDER.parents[3] / "build" / "shim"  # `make clean` removes it
FORWARD, REVERSE, SHUFFLED = range(3)
_FLAGS = ["-std=c++20", "-O1", "-w", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off"]
_KERNELS_A_FILE = 24
_MESSAGE = 512


class ShimFault(Exception):
    """What a kernel did wrong: a divergent barrier, an access outside of its buffers or arrays."""


@dataclass(frozen=True)
class Order:
    """How threads of a workgroup, and workgroups, come one after the other; seed: of what is shuffled."""

    threads: int = FORWARD
    groups: int = FORWARD
    seed: int = 0


ORDERS = {
    "forward": Order(),
    "reverse": Order(REVERSE, REVERSE),
    "shuffled": Order(SHUFFLED, SHUFFLED, seed=1),
}


def allowed_cpus():
    return len(usable_cpus())


class Library:
    """Kernels compiled for this CPU.

    texts: by name, C++ that defines `static void <name>_entry(void* const* arguments)`, which one thread of a workgroup
    runs. header: of the dialect, in this folder. races: unordered uses of workgroup memory end a launch, which takes
    several times as long. Texts are compiled in files of a few, as many at once as there are CPUs; what was compiled
    before is taken from BUILT.
    """

    def __init__(self, texts, header, threads=128, races=False):
        self._threads = threads
        names = list(texts)
        parts = [names[at : at + _KERNELS_A_FILE] for at in range(0, len(names), _KERNELS_A_FILE)]
        with ThreadPoolExecutor(allowed_cpus()) as pool:
            given = [[(name, texts[name]) for name in part] for part in parts]
            paths = list(pool.map(lambda kernels: _compiled(kernels, header, races), given))
        self._libraries = {
            name: library
            for part, library in zip(parts, [ctypes.CDLL(str(path)) for path in paths], strict=True)
            for name in part
        }
        for library in set(self._libraries.values()):
            library.shim_allocate.restype = ctypes.c_void_p
            library.shim_allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
            library.shim_free.argtypes = [ctypes.c_void_p]

    def run(self, name, arrays, grid, order=ORDERS["forward"], skipped=0):
        """Run a kernel on copies of `arrays`, which get their new contents; grid: workgroups (x, y, z).

        skipped: line of the kernel's text whose barrier is left out. In reverse order the copies start where memory
        starts, else they end where it ends, so that both show what reads or writes outside. Raises ShimFault.
        """
        library = self._libraries[name]
        sizes = [-(-array.nbytes // 4) * 4 for array in arrays]
        copies = [library.shim_allocate(size, order.threads != REVERSE) for size in sizes]
        try:
            for copy, array in zip(copies, arrays, strict=True):
                ctypes.memmove(copy, array.ctypes.data, array.nbytes)
            self.launch(name, copies, grid, order, skipped)
            for copy, array in zip(copies, arrays, strict=True):
                ctypes.memmove(array.ctypes.data, copy, array.nbytes)
        finally:
            for copy in copies:
                library.shim_free(copy)

    def launch(self, name, addresses, grid, order=ORDERS["forward"], skipped=0):
        """As `run`, on memory at `addresses`."""
        library = self._libraries[name]
        message = ctypes.create_string_buffer(_MESSAGE)
        failed = library.shim_launch(
            ctypes.c_void_p.in_dll(library, f"{name}_address"),
            (ctypes.c_void_p * len(addresses))(*addresses),
            len(addresses),
            (ctypes.c_uint * 3)(*grid),
            self._threads,
            order.threads,
            order.groups,
            order.seed,
            skipped,
            message,
            ctypes.c_size_t(_MESSAGE),
        )
        if failed:
            raise ShimFault(f"{name}: {message.value.decode(errors='replace')}")

    def entry(self, name):
        """(address of the entry, address of shim_launch) of a kernel, for C."""
        library = self._libraries[name]
        launch = ctypes.cast(library.shim_launch, ctypes.c_void_p)
        return ctypes.c_void_p.in_dll(library, f"{name}_address"), launch


def _compiled(kernels, header, races):
    """The library of these kernels, which is named after all that it is made from."""
    lines = [f'#include "{header}"']
    for name, text in kernels:
        # A namespace each, since kernels bring types of their own. Lines count from the start of the kernel's text.
        lines += [f"namespace of_{name} {{", f'#line 1 "{name}"', text, "}"]
        lines.append(f"SHIM_PUBLIC shim::Entry {name}_address; shim::Entry {name}_address = of_{name}::{name}_entry;")
    flags = [*_FLAGS, *(["-DSHIM_RACES"] if races else [])]
    headers = [path.read_text() for path in sorted(FOLDER.glob("*.h"))]
    text = "\n".join([*lines, ""])
    path = BUILT / f"{hashlib.sha256(repr((flags, headers, text)).encode()).hexdigest()[:32]}.so"
    if path.exists():
        return path
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as folder:
        source, made = Path(folder, "kernels.cc"), Path(folder, "kernels.so")
        source.write_text(text)
        command = ["g++", *flags, "-I", str(FOLDER), "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}\n{done.stderr[:4000]}")
        made.rename(path)  # in one step, since other processes look for it
    return path
