"""TVM's Metal runtime on this CPU: modules of kind "metal" are read as it reads them, their kernels run by the shim.

The library around a module is read by TVM itself.
Memory is that of TVM's own runtime for the CPU. So what is not Apple's, the order of arguments, grids, copies and the
life of buffers, is executed as on a Mac.
"""

import ctypes
import importlib.util
import struct
import subprocess
from pathlib import Path
from uuid import uuid4

import tvm_ffi

from dsv3c.runtime.devices.metal.gpu import Gpu
from dsv3c.targets.link.platforms import find_c_compiler
from dsv3c.targets.metal.library import SYMBOL, link_library
from tests.targets.gpu.shim.library import ORDERS
from tests.targets.gpu.shim.metal import metal_library
from tests.targets.metal import macho

CPU = 1
HANDLE = (3, 64, 1)
FORWARD = Path(__file__).with_name("forward.h")
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


def carried(library):
    """What a Mach-O library has at the symbol that TVM looks for."""
    data = library.content(f"_{SYMBOL}")
    return data[: 8 + struct.unpack_from("<Q", data)[0]]


def module_of(data):
    """The bytes of the module of kind "metal" in what a library carries: the library itself, which imports it."""
    reader = Reader(data)
    assert reader.unpack("<Q") == (len(data) - 8,)
    imports = [reader.many(lambda: reader.unpack("<Q")[0]) for _ in range(2)]
    assert imports == [[0, 1, 1], [1]]
    assert (reader.text(), reader.text()) == ("_lib", "metal")
    found = reader.raw()
    assert reader.ended()
    return found


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

    def __init__(self, data, order):
        kind, self._infos, texts = parse(data)
        assert kind == "metal" and texts.keys() == self._infos.keys()
        # Each text is compiled alone on a Mac, so none may need another.
        self._library = metal_library("".join(texts.values()))
        self._order, self.launches = order, []

    def launch(self, name, *arguments):
        types, tags, _ = self._infos[name]
        assert set(types) <= {HANDLE} and tags[-1] == "threadIdx.x"
        assert len(arguments) == len(types) + len(tags)
        addresses, extents = arguments[: len(types)], arguments[len(types) :]
        assert all(isinstance(address, ctypes.c_void_p) for address in addresses)
        grid = (*extents[:-1], *[1] * (4 - len(extents)))
        assert min(grid) > 0
        self.launches.append((name, grid, extents[-1]))
        self._library.launch(name, [address.value for address in addresses], grid, self._order)

    def as_module(self, folder):
        """What TVM's loaders return: a library whose functions call `launch` with their own name first."""
        key = f"tests.metal.{folder}"
        tvm_ffi.register_global_func(key, lambda *given: self.launch(*given), override=True)
        functions = "\n".join(f"FUNCTION({name})" for name in self._infos)
        (folder / "functions.c").write_text(f'#define LAUNCH "{key}"\n{FORWARD.read_text()}{functions}\n')
        command = [*find_c_compiler(), "-shared", "-fPIC", *(f"-I{path}" for path in tvm_ffi.libinfo.include_paths())]
        subprocess.run([*command, "-o", folder / "functions.so", folder / "functions.c"], check=True)
        return tvm_ffi.load_module(folder / "functions.so")


class CpuGpu(Gpu):
    """Memory is that of this CPU; a library for Macs is loaded as one for this system with the same symbol."""

    def __init__(self, folder):
        super().__init__(kind=CPU)
        self._folder = folder

    def load(self, library):
        if library.suffix == ".dylib":
            library = link_library(carried(macho.read(library)), self._folder / f"{uuid4()}.so", None)
        return super().load(library)


def install(folder, order="forward"):
    """Make this the loader of modules of kind "metal"; the list of the modules it will have loaded."""
    package = Path(importlib.util.find_spec("tvm").origin).parent
    ctypes.CDLL(str(package / "lib" / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    modules = []

    def load(data):
        target = folder / f"module{len(modules)}"
        target.mkdir()
        modules.append(ShimModule(bytes(data), ORDERS[order]))
        return modules[-1].as_module(target)

    tvm_ffi.register_global_func(LOADER, load, override=True)
    return modules
