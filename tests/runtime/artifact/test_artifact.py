"""What a loader must survive: every way in which manifest, plan and files can lie gives one typed error."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact, verify
from tests.runtime import toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy.write_artifact(tmp_path / "toy")


def test_open_keeps_unknown_keys(folder: Path) -> None:
    artifact = Artifact.open(folder)
    assert artifact.manifest.content["unknown key"] == {"is": "kept"}
    assert artifact.plan.context == 64
    assert artifact.tensors["scale"].offset % 64 == 0


def test_verify_counts_and_names_extra_files(folder: Path) -> None:
    (folder / "kernels" / "notes.txt").write_text("mine")
    seen: list[str] = []
    found = verify(str(folder), lambda name, done, size: seen.append(name))
    assert found.files == 3
    assert found.extra == ("kernels/notes.txt",)
    assert set(seen) == {"plan.json", "weights.safetensors", "kernels/base.so"}


def test_verify_finds_a_flipped_bit(folder: Path) -> None:
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    Artifact.open(folder)  # sizes and bounds still fit
    with pytest.raises(errors.FilesDamaged, match=r"weights\.safetensors") as caught:
        verify(folder)
    assert caught.value.damaged == ("weights.safetensors",)  # type: ignore[attr-defined]


def test_folder_missing(tmp_path: Path) -> None:
    with pytest.raises(errors.ArtifactMissing, match="does not exist"):
        Artifact.open(tmp_path / "none")


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ArtifactMissing, match="not a folder"):
        Artifact.open(tmp_path / "file")


def test_folder_name_with_nul() -> None:
    with pytest.raises(errors.ArtifactMissing):
        Artifact.open("a\0b")


def test_manifest_missing(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(errors.ArtifactMissing, match=r"no manifest\.json"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"{",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":1,"a":2}',
            b'{"a":NaN}',
            b'{"a":1e999}',
            b"1" * 5000,
            b"{} {}",
        ),
        b"[" + b"[]," * 500_000 + b"[]]",
    ],
    ids=[
        *("empty", "cut", "not utf-8", "deep", "duplicate key", "nan", "too large", "huge integer", "two values"),
        "millions of lists",
    ],
)
def test_manifest_is_not_json(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(errors.MalformedJson):
        Artifact.open(folder)


def test_manifest_too_large(folder: Path) -> None:
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(errors.FileTooLarge):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["format_version"], 0),
        (["format_version"], "1"),
        (["format_version"], True),
        (["dsv3c_version"], 3),
        (["model"], []),
        (["model", "vocab_size"], 0),
        (["model", "vocab_size"], 2**40),
        (["model", "vocab_size"], 10**300),
        (["model", "max_position_embeddings"], -1),
        (["target"], None),
        (["target", "name"], ""),
        (["target", "levels"], {}),
        (["target", "levels", 0, "requires"], "avx2"),
        (["target", "levels", 0, "file"], "kernels/other.so"),
        (["files"], []),
        (["files", "plan.json"], 1),
        (["files", "plan.json", "sha256"], "abc"),
        (["files", "plan.json", "size"], -1),
        (["files", "plan.json", "size"], 1.5),
        (["files", "manifest.json"], {"sha256": "0" * 64, "size": 1}),
    ],
    ids=str,
)
def test_manifest_malformed(folder: Path, keys: list[Any], value: Any) -> None:
    toy.edit_json(folder / "manifest.json", *keys, value=value)
    with pytest.raises(errors.ManifestInvalid) as caught:
        Artifact.open(folder)
    assert "hint:" in str(caught.value)


@pytest.mark.parametrize("key", ["format_version", "dsv3c_version", "model", "target", "files"])
def test_manifest_key_missing(folder: Path, key: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    del content[key]
    toy.write_manifest(folder, content)
    with pytest.raises(errors.ManifestInvalid, match=f"{key}: is missing"):
        Artifact.open(folder)


def test_format_version_newer(folder: Path) -> None:
    toy.edit_json(folder / "manifest.json", "format_version", value=3)
    toy.edit_json(folder / "manifest.json", "dsv3c_version", value="7.1")
    with pytest.raises(errors.FormatNewer, match=r"version 3.*up to 2(.|\n)*update dsv3c to at least.*\(7\.1\)"):
        Artifact.open(folder)


def test_plan_version_newer(folder: Path) -> None:
    toy.edit_json(folder / "plan.json", "version", value=9)
    toy.refresh(folder, "plan.json")
    with pytest.raises(errors.FormatNewer, match=r"plan\.json"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "kernels/base.so"])
def test_file_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(errors.FileUnreadable, match=Path(name).name):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "kernels/base.so"])
def test_file_truncated(folder: Path, name: str) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(3)
    with pytest.raises(errors.FileSizeWrong, match="has 3 bytes"):
        Artifact.open(folder)


def test_plan_changed_without_changing_its_size(folder: Path) -> None:
    data = (folder / "plan.json").read_bytes().replace(b'"decode"', b'"decodf"')
    (folder / "plan.json").write_bytes(data)
    with pytest.raises(errors.HashMismatch, match=r"plan\.json"):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_required_file_not_listed(folder: Path, name: str) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    del content["files"][name]
    toy.write_manifest(folder, content)
    with pytest.raises(errors.ManifestInvalid, match="not listed"):
        Artifact.open(folder)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:/x", "", ".", "a//b", "./plan.json", "kernels/", "a\0b"],
)
def test_path_escapes(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "size": 1}
    toy.edit_json(folder / "manifest.json", "files", name, value=entry)
    with pytest.raises(errors.PathEscapes):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "kernels/base.so", "manifest.json", "kernels"])
def test_links_are_followed(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    assert verify(folder).files == 3
    assert Artifact.open(folder).checked_bytes("kernels/base.so")


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("absent", errors.FileUnreadable, "it is a link to absent: No such file"),
        ("weights.safetensors", errors.FileUnreadable, "Too many levels of symbolic links"),
        (".", errors.FileNotRegular, "is a folder"),
        ("/dev/zero", errors.FileNotRegular, "is a character device"),
        ("pipe", errors.FileNotRegular, "is a named pipe"),
    ],
)
def test_links_lead_to_files_alone(folder: Path, target: str, error: type[Exception], says: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(target)
    with pytest.raises(error, match=says):
        Artifact.open(folder)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors", "manifest.json"])
def test_file_is_a_pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(errors.FileNotRegular, match="named pipe"):
        Artifact.open(folder)


def test_file_is_a_folder(folder: Path) -> None:
    (folder / "plan.json").unlink()
    (folder / "plan.json").mkdir()
    with pytest.raises(errors.FileNotRegular, match="folder"):
        Artifact.open(folder)


def test_file_is_a_socket(tmp_path: Path, folder: Path) -> None:
    (folder / "plan.json").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            server.bind("plan.json")
        finally:
            os.chdir(here)
        with pytest.raises(errors.FileNotRegular, match="socket"):
            Artifact.open(folder)


def test_optional_json_must_be_an_object(tmp_path: Path) -> None:
    artifact = Artifact.open(toy.write_artifact(tmp_path / "toy", generation_config__json=b"[]"))
    with pytest.raises(errors.ManifestInvalid, match=r"generation_config\.json"):
        artifact.optional_json("generation_config.json")
    assert artifact.optional_json("tokenizer_config.json") == {}
