"""TVM's Metal runtime on this CPU: modules of kind "metal" are read as it reads them, their kernels run by the shim.

Memory is that of TVM's own runtime for the CPU. So what is not Apple's, the order of arguments, grids, copies and the
life of buffers, is executed as on a Mac.
"""

import ctypes
import importlib.util
import struct
from pathlib import Path

import tvm_ffi

from dsv3c.runtime.metal_gpu import Gpu
from tests.targets.gpu.shim.library import ORDERS
from tests.targets.gpu.shim.metal import metal_library

CPU = 1
HANDLE = (3, 64, 1)
LOADER = "ffi.Module.load_from_bytes.metal"


class Reader:
    """The serialized form of TVM's runtime: numbers in little endian, a count of 64 bits before what varies."""

    def __init__(self, data):
        self._data, self._at = data, 0

    def unpack(self, form):
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def raw(self):
        (size,) = self.unpack("<Q")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self):
        return self.raw().decode()

    def many(self, read):
        (count,) = self.unpack("<Q")
        return [read() for _ in range(count)]

    def ended(self):
        return self._at == len(self._data)


def parse(data):
    """(format, {name: (argument types, launch tags, extra tags)}, {name: text})."""
    reader = Reader(data)

    def info():
        key, name = reader.text(), reader.text()
        assert key == name
        types = reader.many(lambda: reader.unpack("<BBH"))
        return name, (types, reader.many(reader.text), reader.many(lambda: reader.unpack("<i")[0]))

    kind, infos = reader.text(), dict(reader.many(info))
    texts = dict(reader.many(lambda: (reader.text(), reader.text())))
    assert reader.ended()
    return kind, infos, texts


class ShimModule:
    """The functions of a module by name. launches: (name, grid, threads) of each launch so far."""

    def __init__(self, data, folder, order):
        kind, self._infos, texts = parse(data)
        assert kind == "metal" and texts.keys() == self._infos.keys()
        # Each text is compiled alone on a Mac, so none may need another.
        self._library = metal_library("".join(texts.values()), folder)
        self._order, self.launches = order, []

    def get_function(self, name):
        types, tags, _ = self._infos[name]
        assert set(types) <= {HANDLE} and tags[-1] == "threadIdx.x"

        def function(*arguments):
            assert len(arguments) == len(types) + len(tags)
            addresses, extents = arguments[: len(types)], arguments[len(types) :]
            assert all(isinstance(address, ctypes.c_void_p) for address in addresses)
            grid = (*extents[:-1], *[1] * (4 - len(extents)))
            assert min(grid) > 0
            self.launches.append((name, grid, extents[-1]))
            self._library.launch(name, [address.value for address in addresses], grid, self._order)

        return function


def install(folder, order="forward"):
    """Make this the loader of modules of kind "metal"; the list of the modules it will have loaded."""
    package = Path(importlib.util.find_spec("tvm").origin).parent
    ctypes.CDLL(str(package / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    modules = []

    def load(data):
        target = folder / f"module{len(modules)}"
        target.mkdir()
        modules.append(ShimModule(bytes(data), target, ORDERS[order]))
        return modules[-1]

    tvm_ffi.register_global_func(LOADER, load, override=True)
    return modules


def open_cpu(wanted):
    """For MetalDevice: a Gpu whose memory is that of this CPU."""
    return Gpu(kind=CPU)
