from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3c.compiler.checkpoint.errors import (
    CompiledError,
    DuplicateTensorError,
    GgufError,
    IndexFormatError,
    JsonError,
    ManyFilesError,
    MissingShardError,
    NoFolderError,
    NoIndexError,
    NoWeightsError,
    PathEscapeError,
    PointerFileError,
    SafetensorsError,
    ShardContentError,
    TorchFileError,
    UnreadableFileError,
)
from dsv3c.compiler.checkpoint.shards import INDEX, SINGLE, open_tensors
from dsv3c.compiler.errors import CheckpointError
from tests.checkpoints import safetensors_bytes, write_safetensors, write_sharded

A = {"a": np.ones(3, np.float32)}
B = {"b": np.ones(2, np.float32), "c": np.zeros((0,), np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_sharded(folder, {"s1.safetensors": A, "s2.safetensors": B})
    write_safetensors(tmp_path / "out.safetensors", A)
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def map_to(shard: Any) -> Callable[[Path], None]:
    return lambda folder: edit_index(folder, lambda index: index["weight_map"].update(a=shard))


def link_to(target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "s1.safetensors").unlink()
        (folder / "s1.safetensors").symlink_to(target)

    return change


def replace_pipe(folder: Path) -> None:
    (folder / "s1.safetensors").unlink()
    os.mkfifo(folder / "s1.safetensors")


def write_index(data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / INDEX).write_bytes(data)

    return change


def truncate(folder: Path) -> None:
    (folder / "s1.safetensors").write_bytes(safetensors_bytes(A)[:-1])


def zero(folder: Path) -> None:
    (folder / "s1.safetensors").write_bytes(bytes(99))


def duplicate(folder: Path) -> None:
    write_safetensors(folder / "s2.safetensors", {**A, **B})


def unlisted(folder: Path) -> None:
    write_safetensors(folder / "s2.safetensors", {**B, "d": np.ones(1, np.float32)})


BAD: dict[str, tuple[Callable[[Path], None], type[CheckpointError], str]] = {
    "index empty": (write_index(b""), JsonError, "Expecting value"),
    "index of zero bytes": (write_index(bytes(64)), JsonError, "Expecting value"),
    "index a list": (write_index(b"[]"), JsonError, "expected an object"),
    "index deep": (write_index(b'{"a":' * 100_000), JsonError, "nested"),
    "index with a tensor twice": (write_index(b'{"weight_map": {"a": "x", "a": "y"}}'), JsonError, "given twice"),
    "index without weight_map": (write_index(b"{}"), IndexFormatError, "weight_map is None"),
    "weight_map a list": (write_index(b'{"weight_map": []}'), IndexFormatError, "weight_map"),
    "weight_map empty": (write_index(b'{"weight_map": {}}'), IndexFormatError, "weight_map"),
    "shard a number": (map_to(3), IndexFormatError, "expected a file name"),
    "shard empty": (map_to(""), IndexFormatError, "expected a file name"),
    "shard above": (map_to("../out.safetensors"), PathEscapeError, "does not lie"),
    "shard above, windows": (map_to("..\\out.safetensors"), PathEscapeError, "does not lie"),
    "shard above, in the middle": (map_to("x/../s1.safetensors"), PathEscapeError, "does not lie"),
    "shard absolute": (map_to("/etc/passwd"), PathEscapeError, "does not lie"),
    "shard on a drive": (map_to("C:out.safetensors"), PathEscapeError, "does not lie"),
    "shard with NUL": (map_to("s1\0.safetensors"), PathEscapeError, "does not lie"),
    "shard a surrogate": (map_to("\ud800"), PathEscapeError, "does not lie"),
    "shard a link to nothing": (link_to("absent"), UnreadableFileError, "a link to absent: No such file"),
    "shard a link to itself": (link_to("s1.safetensors"), UnreadableFileError, "Too many levels"),
    "shard a link to a device": (link_to("/dev/zero"), UnreadableFileError, "not a regular file"),
    "shard a link to a folder": (link_to("."), UnreadableFileError, "not a regular file"),
    "shard the folder": (map_to("."), UnreadableFileError, "not a regular file"),
    "shard a pipe": (replace_pipe, UnreadableFileError, "not a regular file"),
    "shard name too long": (map_to("x" * 5000), UnreadableFileError, "too long"),
    "shard missing": (lambda folder: (folder / "s2.safetensors").unlink(), MissingShardError, "s2.safetensors"),
    "shard truncated": (truncate, SafetensorsError, "truncated"),
    "shard all zero": (zero, SafetensorsError, "not a JSON object"),
    "in the index, not in the shard": (map_to("s2.safetensors"), ShardContentError, "the index says"),
    "in the shard, not in the index": (unlisted, ShardContentError, "does not list"),
    "in two shards": (duplicate, DuplicateTensorError, "in two files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_index_or_shard_is_refused(case: str, folder: Path) -> None:
    spoil, error, reason = BAD[case]
    spoil(folder)
    with pytest.raises(error, match=reason) as caught:
        open_tensors(folder)
    str(caught.value).encode()


def test_shards_are_joined(folder: Path) -> None:
    stored, files, warnings = open_tensors(folder)
    assert {name: tensor.file.path.name for name, tensor in stored.items()} == {
        "a": "s1.safetensors", "b": "s2.safetensors", "c": "s2.safetensors"
    }  # fmt: skip
    assert files == (INDEX, "s1.safetensors", "s2.safetensors")
    assert warnings == ()


def test_a_shard_may_lie_in_a_folder_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "s1.safetensors").rename(folder / "sub" / "s1.safetensors")
    map_to("sub/s1.safetensors")(folder)
    assert set(open_tensors(folder)[0]) == {"a", "b", "c"}


def test_links_in_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    """As for files on another disk, or those of the cache of huggingface_hub."""
    link_to("../out.safetensors")(folder)
    (folder / INDEX).rename(tmp_path / "blob")
    (folder / INDEX).symlink_to(tmp_path / "blob")
    assert set(open_tensors(folder)[0]) == {"a", "b", "c"}
    (folder / "sub").symlink_to("..")
    map_to("sub/out.safetensors")(folder)
    assert set(open_tensors(folder)[0]) == {"a", "b", "c"}


def test_a_snapshot_in_the_cache_of_hugging_face_opens(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_safetensors(blobs / "abc", A)
    (snapshot / SINGLE).symlink_to("../../blobs/abc")
    assert set(open_tensors(snapshot)[0]) == {"a"}


@pytest.mark.parametrize("size", [0, "20", -1])
def test_a_wrong_total_size_is_a_warning(size: Any, folder: Path) -> None:
    edit_index(folder, lambda index: index["metadata"].update(total_size=size))
    (warning,) = open_tensors(folder)[2]
    assert repr(size) in warning and "20 bytes" in warning
    edit_index(folder, lambda index: index.update(metadata=[]))
    assert open_tensors(folder)[2] == ()


def test_a_single_file_goes_before_an_index(folder: Path) -> None:
    write_safetensors(folder / SINGLE, A)
    stored, files, warnings = open_tensors(folder)
    assert (set(stored), files, len(warnings)) == ({"a"}, (SINGLE,), 1)


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(NoWeightsError, match="neither"):
        open_tensors(tmp_path)
    (tmp_path / "file").touch()
    cases = ((tmp_path / "file", "not a folder"), (tmp_path / "absent", "not exist"), (Path("a\0b"), "not exist"))
    for path, says in cases:
        with pytest.raises(NoFolderError, match=says):
            open_tensors(path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["s1.safetensors", INDEX])
def test_a_pointer_of_git_lfs_is_told(name: str, folder: Path) -> None:
    (folder / name).write_bytes(POINTER)
    with pytest.raises(PointerFileError, match=rf"{name} is not the file itself.*\n  hint: run `git lfs pull`"):
        open_tensors(folder)


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        (["m-00001-of-00002.safetensors"], NoIndexError, f"but not '{INDEX}', 'm-00002-of-00002.safetensors'"),
        (["m-00001-of-999999999.safetensors"], NoIndexError, f"but not '{INDEX}'\n"),
        (["weights.safetensors"], NoIndexError, f"holds 'weights.safetensors', but not '{INDEX}'\n"),
        (["manifest.json", "plan.json", "weights.safetensors"], CompiledError, "it is compiled already"),
        (["x.GGUF", "y.txt"], GgufError, "holds 'x.GGUF', but no safetensors"),
        (["pytorch_model.bin", "vocab.txt"], TorchFileError, "pytorch_model.bin is not a file of weights"),
        (["a.pt", "b.ckpt", "optimizer.pt"], ManyFilesError, "holds 'a.pt', 'b.ckpt', and nothing says which"),
        (["optimizer.pt", "training_args.bin"], NoWeightsError, "neither"),
        (["vocab.txt"], NoWeightsError, "neither"),
    ],
)  # fmt: skip
def test_what_is_there_instead_of_weights_is_named(
    files: list[str], error: type[CheckpointError], says: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(error) as caught:
        open_tensors(tmp_path)
    assert type(caught.value) is error and says in str(caught.value)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.dictionaries(st.sampled_from("abcd"), st.text(max_size=6) | st.none(), max_size=3))
def test_any_index_opens_or_raises_a_typed_error(tmp_path_factory: Any, data: bytes, weight_map: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "s1", A)
    for text in (data, b'{"weight_map": ' + data + b"}", json.dumps({"weight_map": weight_map}).encode()):
        (folder / INDEX).write_bytes(text)
        try:
            open_tensors(folder)
        except CheckpointError as error:
            str(error).encode()
