"""The files of a checkpoint: one model.safetensors, or the shards that an index lists; else those of torch.save."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dsv3c.compiler.checkpoint import old_names
from dsv3c.compiler.checkpoint.errors import (
    CompiledError,
    DuplicateTensorError,
    GgufError,
    IndexFormatError,
    ManyFilesError,
    MissingShardError,
    NoFolderError,
    NoIndexError,
    NoWeightsError,
    PathEscapeError,
    ShardContentError,
    UnreadableFileError,
)
from dsv3c.compiler.checkpoint.files import MAX_TABLE_BYTES, exists, quote, read_object, some
from dsv3c.compiler.checkpoint.mapped import TensorFile
from dsv3c.compiler.checkpoint.pickled import TorchFile
from dsv3c.compiler.checkpoint.safetensors import SafetensorsFile
from dsv3c.compiler.checkpoint.stored import StoredTensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
_ARTIFACT = {"manifest.json", "plan.json"}  # what the compiler itself writes
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")  # what lies beside them after training
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>0{0,3}\d{1,4})\.safetensors")


def open_tensors(folder: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...], tuple[str, ...]]:
    """(stored tensors by name, names of the weight files, warnings) of a checkpoint folder.

    As in transformers, a single file goes before an index, and safetensors before pickles. Reads headers alone. Raises
    typed errors for every fault of index and headers.
    """
    if not folder.is_dir():
        raise NoFolderError(path=folder, reason="it is not a folder" if exists(folder) else "it does not exist")
    stored, names, warnings = _open(folder)
    return old_names.settled(stored), names, warnings


def _open(folder: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...], tuple[str, ...]]:
    has_index = exists(folder / INDEX)
    if exists(folder / SINGLE):
        warnings = (f"{INDEX} is ignored: there is a {SINGLE} beside it",) if has_index else ()
        return _tensors_of(SafetensorsFile(folder / SINGLE)), (SINGLE,), warnings
    if has_index:
        return _open_index(folder, INDEX, SafetensorsFile)
    if not exists(folder / PICKLED) and exists(folder / PICKLED_INDEX):
        return _open_index(folder, PICKLED_INDEX, TorchFile)
    name = _pickled(folder)
    return _tensors_of(TorchFile(folder / name)), (name,), ()


def _tensors_of(file: TensorFile) -> dict[str, StoredTensor]:
    return {name: StoredTensor(file, info) for name, info in file.tensors.items()}


def _pickled(folder: Path) -> str:
    """The one file of torch.save that has the weights. Raises NoWeightsError."""
    names = _names(folder)
    found = [name for name in names if name.lower().endswith(PICKLED_SUFFIXES) and not name.startswith(_NO_WEIGHTS)]
    if any(name.endswith(".safetensors") for name in names) or not found:
        raise _no_weights(folder)
    if PICKLED in found or len(found) == 1:
        return PICKLED if PICKLED in found else found[0]
    raise ManyFilesError(path=folder, found=some(found))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UnreadableFileError(path=folder, reason=error.strerror) from error


def _no_weights(folder: Path) -> NoWeightsError:
    """What is in a folder instead of weights that can be read."""
    names = _names(folder)
    safetensors = [name for name in names if name.endswith(".safetensors")]
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if _ARTIFACT.issubset(names):
        return CompiledError(path=folder)
    if safetensors:
        missing = [INDEX, *_missing_shards(safetensors)]
        return NoIndexError(path=folder, found=some(safetensors), missing=some(missing))
    if gguf:
        return GgufError(path=folder, found=some(gguf))
    return NoWeightsError(path=folder)


def _missing_shards(names: Sequence[str]) -> list[str]:
    """The shards that the name of the first one announces and that are not there."""
    first = next((match for match in map(_SHARD.fullmatch, names) if match), None)
    if first is None:
        return []
    width = len(first["number"])
    numbers = (f"{number:0{width}}" for number in range(1, int(first["count"]) + 1))
    expected = (f"{first['stem']}-{number}-of-{first['count']}.safetensors" for number in numbers)
    present = set(names)
    return [name for name in expected if name not in present]


def _open_index(
    folder: Path, name: str, opened: Callable[[Path], TensorFile]
) -> tuple[dict[str, StoredTensor], tuple[str, ...], tuple[str, ...]]:
    path = folder / name
    index = read_object(path, MAX_TABLE_BYTES)
    weight_map = _weight_map(index, path)
    shards = tuple(sorted(set(weight_map.values())))
    files = {shard: opened(_shard_path(folder, shard, path)) for shard in shards}
    stored: dict[str, StoredTensor] = {}
    for file in files.values():
        for name, info in file.tensors.items():
            if name in stored:
                raise DuplicateTensorError(tensor=quote(name), first=stored[name].file.path, second=file.path)
            stored[name] = StoredTensor(file, info)
    _compare(weight_map, stored, files)
    return stored, (path.name, *shards), _size_warnings(index, stored, path)


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IndexFormatError(path=path, reason=f"weight_map is {quote(weight_map)}, expected an object of names")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard:
            raise IndexFormatError(
                path=path, reason=f"weight_map[{quote(name)}] is {quote(shard)}, expected a file name"
            )
    return weight_map


def _shard_path(folder: Path, shard: str, index: Path) -> Path:
    """Raises PathEscapeError unless `shard` is a plain relative path that stays inside, MissingShardError if absent."""
    windows = PureWindowsPath(shard)
    parts = {*PurePosixPath(shard).parts, *windows.parts}
    if not shard.isprintable() or ".." in parts or windows.drive or windows.root:
        raise PathEscapeError(folder=folder, name=quote(shard))
    path = folder / shard
    if not exists(path):
        raise MissingShardError(path=index, shard=quote(shard))
    return path


def _compare(
    weight_map: Mapping[str, str], stored: Mapping[str, StoredTensor], files: Mapping[str, TensorFile]
) -> None:
    """Raises ShardContentError unless index and shards list the same tensors."""
    for name, shard in weight_map.items():
        if name not in files[shard].tensors:
            reason = "the index says it is there"
            raise ShardContentError(path=files[shard].path, tensor=quote(name), reason=reason)
    for name, found in stored.items():
        if name not in weight_map:
            raise ShardContentError(path=found.file.path, tensor=quote(name), reason="the index does not list it")


def _size_warnings(index: Mapping[str, Any], stored: Mapping[str, StoredTensor], path: Path) -> tuple[str, ...]:
    metadata = index.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(tensor.info.end - tensor.info.begin for tensor in stored.values())
    if claimed is None or claimed == found:
        return ()
    return (f"{path.name} says total_size {quote(claimed)}, the tensors take {found} bytes",)
