"""Files of torch.save: `.bin`, `.pt`, `.pth`, `.ckpt`.

The form since torch 1.6 is a zip archive NAME/data.pkl, NAME/data/KEY a storage, NAME/byteorder. The one before is a
row of pickles: a magic number, a version, facts of the system, the object, the keys of storages; then for each key the
number of elements in eight bytes and the elements (pytorch's `torch/serialization.py`, `_save` and `_legacy_save`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.compiler.checkpoint.errors import PickledNameError, TorchFileError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.mapped import TensorFile, TensorInfo
from dsv3c.compiler.checkpoint.pickled.machine import Machine, Malformed, Refused, Storage, Tensor
from dsv3c.compiler.checkpoint.pickled.records import Record, records
from dsv3c.compiler.checkpoint.safetensors import DTYPE_BITS, NUMPY_DTYPES

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_MAX_PICKLE = 64 << 20
# Under which training programs put the weights beside the rest of their state.
_NESTED = ("state_dict", "model_state_dict", "model", "module")

Found = tuple[Any, Mapping[str, Record]]


class TorchFile(TensorFile):
    """One open file; `tensors` are those of its dictionary of weights."""

    fault = TorchFileError

    def __init__(self, path: Path) -> None:
        """Raises as TensorFile, TorchFileError for anything that breaks the format, PickledNameError for a pickle that
        names anything but tensors and containers."""
        super().__init__(path)
        try:
            content, storages = _zipped(self._map) if self._map[:2] == b"PK" else _legacy(self._map)
            self._tensors = _weights(content)
            self.tensors = {name: _info(name, tensor, storages, self.size) for name, tensor in self._tensors.items()}
        except Refused as error:
            raise PickledNameError(path=path, name=quote(str(error))) from error
        except ValueError as error:
            raise TorchFileError(path=path, reason=error) from error

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """BF16 and the F8 types come as their bit patterns, as of SafetensorsFile."""
        tensor, info = self._tensors[name], self.tensors[name]
        dtype = np.dtype(NUMPY_DTYPES.get(info.dtype, "u1"))
        flat = self._view(info, dtype, ((info.end - info.begin) // dtype.itemsize,))
        if not flat.size:
            return np.empty(info.shape, dtype)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def _zipped(mapped: Any) -> Found:
    view = memoryview(mapped)
    found = records(view)
    pickles = [name for name in found if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise Malformed("it is a zip archive without data.pkl" if not pickles else "it has several data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    order = found.get(f"{prefix}byteorder")
    if order is not None and bytes(view[order.begin : order.end]) != b"little":
        raise Malformed("its numbers are big-endian")
    pickle = found[pickles[0]]
    if pickle.end - pickle.begin > _MAX_PICKLE:
        raise Malformed(f"its data.pkl has more than {_MAX_PICKLE} bytes")
    content = Machine(view[pickle.begin : pickle.end]).run()
    data = f"{prefix}data/"
    return content, {name.removeprefix(data): record for name, record in found.items() if name.startswith(data)}


def _legacy(mapped: Any) -> Found:
    view = memoryview(mapped)
    at, content = 0, []
    for _ in range(5):
        machine = Machine(view, at)
        content.append(machine.run())
        at = machine.at
        if content[0] != _MAGIC:
            raise Malformed("it begins as no file of torch.save does")
    version, system, found, keys = content[1:]
    if version != _VERSION:
        raise Malformed(f"its version is {quote(version)}, not {_VERSION}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Malformed("its numbers are big-endian")
    return found, dict(_storages(keys, _sizes(found), view, at))


def _storages(keys: Any, sizes: Mapping[str, Storage], view: memoryview, at: int) -> Iterator[tuple[str, Record]]:
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in sizes or at + 8 > len(view):
            raise Malformed(f"it has no storage {quote(key)}")
        (count,) = struct.unpack_from("<Q", view, at)
        end = at + 8 + count * DTYPE_BITS[sizes[key].dtype] // 8
        if end > len(view):
            raise Malformed(f"its storage {quote(key)} reaches beyond its end")
        yield key, Record(at + 8, end)
        at = end


def _sizes(content: Any) -> dict[str, Storage]:
    """All storages of an object, also of what is no weight: each has its place in a legacy file."""
    found: dict[str, Storage] = {}
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found[value.storage.key] = value.storage
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _weights(content: Any) -> dict[str, Tensor]:
    """The tensors of the object itself, or of the dictionary in it that has them."""
    nested = [content.get(name) for name in _NESTED] if isinstance(content, dict) else []
    for found in (content, *nested):
        values = found.items() if isinstance(found, dict) else ()
        tensors = {name: value for name, value in values if isinstance(value, Tensor) and isinstance(name, str)}
        if tensors:
            return tensors
    raise Malformed("it holds no dictionary of tensors")


def _info(name: str, tensor: Tensor, storages: Mapping[str, Record], file_size: int) -> TensorInfo:
    record = storages.get(tensor.storage.key)
    if record is None:
        raise Malformed(f"it has no storage for the tensor {quote(name)}")
    width = DTYPE_BITS[tensor.dtype] // 8
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.strides, strict=True))
    begin = record.begin + tensor.offset * width
    end = begin + (last + 1) * width if all(tensor.shape) else begin
    if end > record.end:
        raise Malformed(f"the tensor {quote(name)} reaches beyond its storage")
    if math.prod(tensor.shape) > file_size:  # by strides of 0 one stands for any number of them
        raise Malformed(f"the tensor {quote(name)} has more numbers than the file has bytes")
    return TensorInfo(name, tensor.dtype, tensor.shape, begin, end)
