"""Files as torch.save writes them, without torch: opcodes of protocol 2 one by one, a zip archive around them."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float64): "Double",
    np.dtype(np.float32): "Float",
    np.dtype(np.float16): "Half",
    np.dtype(ml_dtypes.bfloat16): "BFloat16",
    np.dtype(np.int64): "Long",
    np.dtype(np.uint8): "Byte",
    np.dtype(np.int8): "Char",
    np.dtype(np.bool_): "Bool",
}
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
SYSTEM = {"protocol_version": 1001, "little_endian": True}
MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(kind: str, key: str, count: int, behind: bytes = b"") -> bytes:
    return (
        b"("
        + text("storage")
        + f"ctorch\n{kind}Storage\n".encode()
        + text(key)
        + text("cpu")
        + integer(count)
        + (behind + b"tQ")
    )


def tensor(kept: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    made = b"(" + kept + integer(offset) + integers(shape) + integers(strides) + b"\x89" + ORDERED_DICT + b"tR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + made


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[at + 1 :])) for at in range(len(shape)))


def dictionary(items: Mapping[str, bytes]) -> bytes:
    return ORDERED_DICT + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def weights(tensors: Mapping[str, np.ndarray], behind: bytes = b"") -> bytes:
    """The dictionary of the tensors, each with a storage of its own, keys 0, 1, …; `behind` the count of a storage."""
    return dictionary(
        {
            name: tensor(
                storage(STORAGES[value.dtype], str(key), value.size, behind), value.shape, strides_of(value.shape)
            )
            for key, (name, value) in enumerate(tensors.items())
        }
    )


def pickled(content: bytes) -> bytes:
    return b"\x80\x02" + content + b"."


def write_zip(
    path: Path,
    content: bytes,
    storages: Mapping[str, bytes],
    order: bytes = b"little",
    method: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled(content))
        archive.writestr("archive/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    storages = {str(key): value.tobytes() for key, value in enumerate(tensors.values())}
    return write_zip(path, weights(tensors), storages)


def legacy_bytes(content: bytes, storages: Mapping[str, tuple[int, bytes]], little: bool = True) -> bytes:
    """storages: number of elements and data by key."""
    system = b"}(" + text("protocol_version") + integer(1001) + text("little_endian") + (b"\x88" if little else b"\x89")
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    head = (integer(MAGIC), integer(1001), system + b"u", content, keys)
    data = (struct.pack("<Q", count) + kept for count, kept in storages.values())
    return b"".join(map(pickled, head)) + b"".join(data)


def write_legacy(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    storages = {str(key): (value.size, value.tobytes()) for key, value in enumerate(tensors.values())}
    path.write_bytes(legacy_bytes(weights(tensors, behind=b"N"), storages))
    return path


def write_torch_shards(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """One file a shard, and pytorch_model.bin.index.json over them."""
    for file_name, tensors in shards.items():
        write_torch(folder / file_name, tensors)
    index = {"weight_map": {name: file_name for file_name, tensors in shards.items() for name in tensors}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
