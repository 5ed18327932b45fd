"""Checkpoints by their id, from a server on this machine that speaks the hub's API."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.compiler.checkpoint import Checkpoint, hub, model_name
from dsv3c.compiler.checkpoint.hub import transfer
from dsv3c.compiler.checkpoint.hub.errors import (
    HubAccessError,
    HubAnswerError,
    HubFileError,
    HubGgufError,
    HubInterruptedError,
    HubPackageError,
    HubRevisionError,
    HubStoreError,
    HubUnreachableError,
    HubWeightsError,
)
from dsv3c.compiler.checkpoint.hub.repository import HubId, Repository
from tests.checkpoints import safetensors_bytes, tiny_config, write_checkpoint, write_sharded, write_tokenizer
from tests.hub import COMMIT, Hub, serving

ID = Path("org/model")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("source")
    config = tiny_config(num_hidden_layers=2)
    stored = write_checkpoint(folder, config)
    write_tokenizer(folder, config["vocab_size"])
    (folder / WEIGHTS).unlink()
    names = list(stored)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    write_sharded(folder, {name: {each: stored[each] for each in part} for name, part in halves.items()})
    others = {"README.md": b"text", "pytorch_model.bin": b"never fetched", "onnx/model.onnx": b"nor this"}
    return {path.name: path.read_bytes() for path in folder.iterdir()} | others


@pytest.fixture
def server(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    found = Hub(files)
    with serving(found) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.chdir(tmp_path)
        yield found


def kept(cache: Path) -> list[str]:
    """Names of all files in it that have anything."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.is_symlink())


def test_the_files_that_are_needed_are_fetched_once(server: Hub, tmp_path: Path) -> None:
    folder = hub.local(ID)
    assert folder == tmp_path / "cache" / "models--org--model" / "snapshots" / COMMIT
    wanted = {"config.json", "tokenizer.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert {name for name, _ in server.asked if "/" not in name} == wanted
    assert all((folder / name).read_bytes() == server.files[name] for name in wanted)
    server.asked.clear()
    assert hub.local(ID) == folder and [name for name, _ in server.asked] == ["/api/models/org/model"]


def test_name_and_revision_are_pinned(server: Hub) -> None:
    source = Checkpoint.open(hub.local(Path("org/model@main")))
    assert model_name(source.path) == "model"
    provenance = source.provenance()
    assert provenance["hub"] == {"id": "org/model", "revision": COMMIT} and provenance["name"] == "model"
    assert "a.safetensors" in provenance["files"]


def test_a_folder_that_is_there_goes_before_an_id(server: Hub, tmp_path: Path) -> None:
    (tmp_path / ID).mkdir(parents=True)
    assert hub.local(ID) == ID and not server.asked
    with hub.afar(ID) as seen:
        assert seen == hub.Afar(ID)
    assert HubId.parse(Path("other/model@v1.0")) == HubId("other/model", "v1.0")
    others = ("model", "/org/model", "a/b/c", "org/mo del", "../model", "models/model-Q4_0.gguf")
    assert all(HubId.parse(Path(path)) is None for path in others)


def test_the_token_stays_with_the_hub(server: Hub) -> None:
    other = Hub(server.files)
    with serving(other) as url:
        server.redirects["a.safetensors"] = f"{url}/cdn/a.safetensors"
        server.redirects["b.safetensors"] = f"{server.url.replace('127.0.0.1', 'localhost')}/cdn/b.safetensors"
        hub.local(ID)
        server.moved = url
        hub.local(ID)
    assert {token for path, token in server.tokens if "b.safetensors" not in path} == {"Bearer hf_secret"}
    assert ("/cdn/b.safetensors", None) in server.tokens, "another name of the same machine is another host"
    assert {path for path, _ in other.tokens} == {"/cdn/a.safetensors", "/api/models/org/model"}
    assert {token for _, token in other.tokens} == {None}


def test_a_file_that_changes_while_it_is_fetched_is_refused_and_nothing_kept(server: Hub, tmp_path: Path) -> None:
    server.cut["a.safetensors"] = [1000, *[0] * 20]
    with pytest.raises(HubInterruptedError):
        hub.local(ID)
    server.cut.clear()
    server.wrong = {"a.safetensors"}
    with pytest.raises(HubFileError, match="its hash is"):
        hub.local(ID)
    assert not any(entry.endswith(".begun") for entry in kept(tmp_path / "cache"))
    server.wrong.clear()
    assert (hub.local(ID) / "a.safetensors").read_bytes() == server.files["a.safetensors"]


def test_a_full_disk_is_told_and_the_same_command_goes_on(server: Hub) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(HubStoreError, match=r"cannot be kept in .*\.begun: File too large"):
            hub.local(ID)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    server.asked.clear()
    assert (hub.local(ID) / "a.safetensors").read_bytes() == server.files["a.safetensors"]
    assert ("a.safetensors", f"bytes=10000-{len(server.files['a.safetensors']) - 1}") in server.asked


def test_a_cache_that_cannot_be_written_is_told(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(HubStoreError, match=r"cache/models--org--model: .*\n.*HF_HUB_CACHE"):
        hub.local(ID)


def test_of_two_that_fetch_a_file_one_waits_for_the_other(server: Hub, tmp_path: Path) -> None:
    repository = Repository.ask(HubId("org/model", None))
    file, place = repository.files["a.safetensors"], tmp_path / "a"
    server.cut["a.safetensors"] = [1000, 2000, 3000]

    def fetch(_: int) -> int:
        told: list[int] = []
        transfer.download(file, repository.url(file.name), repository.headers, place, told.append)
        return sum(told)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fetch, range(4))) == [file.size] * 4
    assert place.read_bytes() == server.files["a.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    fetched = [asked for name, asked in server.asked if name == "a.safetensors"]
    assert len(fetched) == 2 * 4, "one of them in four answers, each led on once"


def test_a_download_goes_on_where_it_broke_off(server: Hub, tmp_path: Path) -> None:
    size = len(server.files["a.safetensors"])
    server.cut["a.safetensors"] = [1000, *[0] * 20]
    with pytest.raises(HubInterruptedError, match=f"after 1000 of {size} bytes"):
        hub.local(ID)
    server.cut.clear()
    server.asked.clear()
    folder = hub.local(ID)
    assert ("a.safetensors", f"bytes=1000-{size - 1}") in server.asked
    assert (folder / "a.safetensors").read_bytes() == server.files["a.safetensors"]


def test_a_connection_that_breaks_is_taken_up_again(server: Hub) -> None:
    server.cut["a.safetensors"] = [1000, 1, 0, 500]
    assert (hub.local(ID) / "a.safetensors").read_bytes() == server.files["a.safetensors"]


def test_what_was_kept_is_checked_again(server: Hub) -> None:
    folder = hub.local(ID)
    blob = (folder / "a.safetensors").resolve()
    blob.write_bytes(bytes(len(server.files["a.safetensors"])))
    assert (hub.local(ID) / "a.safetensors").read_bytes() == server.files["a.safetensors"]


@pytest.mark.parametrize("name", ["a.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_wrong_hash_is_refused_and_nothing_kept(server: Hub, name: str, tmp_path: Path) -> None:
    server.wrong = {name}
    with pytest.raises(HubFileError, match=f"{name} cannot be taken: its hash is .*\n.*nothing of it was kept"):
        hub.local(ID)
    assert not any(entry.endswith(".begun") for entry in kept(tmp_path / "cache"))
    assert not (tmp_path / "cache" / "models--org--model" / "snapshots" / COMMIT / name).exists()


def test_a_truncated_range_is_refused_and_nothing_kept(server: Hub, tmp_path: Path) -> None:
    server.short = {"a.safetensors"}
    with pytest.raises(HubFileError, match=r"asked for bytes 0-.* it gave 'bytes 0-"):
        hub.local(ID)
    assert not any(entry.endswith(".begun") for entry in kept(tmp_path / "cache"))
    with pytest.raises(HubFileError, match="asked for bytes 0-7 it gave 'bytes 0-3"), hub.afar(ID):
        pass


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/../../etc/passwd"])
def test_a_redirect_to_a_file_is_refused_and_nothing_kept(server: Hub, target: str, tmp_path: Path) -> None:
    server.redirects["a.safetensors"] = target
    for fetch in (hub.local, lambda path: hub.afar(path).__enter__()):
        with pytest.raises(HubFileError, match=r"it leads to|not allowed|it answers 404"):
            fetch(ID)
    assert not any(entry.endswith(".begun") for entry in kept(tmp_path / "cache"))


def test_an_answer_that_does_not_end_is_refused(server: Hub) -> None:
    server.changes["siblings"] = server.info()["siblings"]
    for sibling in server.changes["siblings"]:
        if sibling["rfilename"] == "config.json":
            sibling["size"] = 5
    with pytest.raises(HubFileError):
        hub.local(ID)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha": "../../x"}, "commit"),
        ({"siblings": [{"rfilename": WEIGHTS, "size": 3, "blobId": "../x"}]}, "hash"),
        ({"siblings": [{"rfilename": WEIGHTS, "size": -3, "blobId": COMMIT}]}, "-3 bytes"),
        ({"siblings": [{"rfilename": "../x.safetensors", "size": 3, "blobId": COMMIT}]}, "neither model.safetensors"),
        ({"siblings": []}, "neither model.safetensors"),
    ],
)
def test_what_a_hub_says_is_checked(server: Hub, changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    server.changes = changes
    with pytest.raises(HubAnswerError, match=reason):
        hub.local(ID)
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "index",
    [
        *(b"[]", b"{}", b"{", b'{"weight_map": {}}', b'{"weight_map": {"a": "../../x"}}'),
        *(b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": ["x"]}}', b'{"weight_map": {"a": "x", "b": {}}}'),
    ],
)
def test_an_index_names_files_of_the_repository(server: Hub, index: bytes) -> None:
    server.files["model.safetensors.index.json"] = index
    with pytest.raises(HubAnswerError, match=r"model\.safetensors\.index\.json"):
        hub.local(ID)


def test_what_is_not_there_or_not_shown_is_told(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HubAccessError, match=r"org/other is neither a folder here nor .*\n.*hf auth login"):
        hub.local(Path("org/other"))
    with pytest.raises(HubRevisionError, match="no revision nightly"):
        hub.local(Path("org/model@nightly"))
    for status, code, reason in ((401, "", "private"), (403, "GatedRepo", "gated"), (403, "", "403")):
        server.status, server.code = status, code
        with pytest.raises(HubAccessError, match=reason):
            hub.local(ID)
    server.status = 500
    with pytest.raises(HubUnreachableError, match="500"):
        hub.local(ID)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachableError, match=r"cannot be asked for it: .*\n.*give the folder"):
        hub.local(ID)
    assert not (tmp_path / "cache").exists()


def test_offline_a_snapshot_that_is_there_is_taken(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.local(ID)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.local(ID) == folder and hub.local(Path(f"org/model@{COMMIT}")) == folder
    with pytest.raises(HubUnreachableError):
        hub.local(Path("org/model@v2"))


def test_without_the_package_its_extra_is_named(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubPackageError, match=r"pip install 'dsv3c\[hub\]'"):
        hub.local(ID)


def test_headers_are_enough_to_see_a_checkpoint(server: Hub, tmp_path: Path) -> None:
    with hub.afar(ID) as seen:
        source = Checkpoint.open(seen.folder)
        assert model_name(seen.folder) == "model"
        assert seen.files == 5 and seen.download_bytes == sum(
            len(server.files[name])
            for name in (
                "config.json",
                "tokenizer.json",
                "model.safetensors.index.json",
                "a.safetensors",
                "b.safetensors",
            )
        )
        headers = sum(8 + struct.unpack("<Q", server.files[f"{x}.safetensors"][:8])[0] for x in "ab")
        texts = sum(len(data) for name, data in server.files.items() if name.endswith(".json"))
        assert seen.read_bytes == headers + texts
        folder = seen.folder
    assert not folder.exists() and not (tmp_path / "cache").exists()
    assert source.shapes == Checkpoint.open(hub.local(ID)).shapes
    ranges = [asked for name, asked in server.asked if name == "a.safetensors"][:2]
    assert ranges[0] == "bytes=0-7"


def test_pickles_cannot_be_seen_from_afar(server: Hub) -> None:
    server.files = {"config.json": b"{}", "pytorch_model.bin": b"x" * 100}
    with pytest.raises(HubWeightsError, match="no safetensors"), hub.afar(ID):
        pass


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 16, struct.pack("<Q", 100) + b"{}"])
def test_a_header_that_cannot_be_is_refused(server: Hub, data: bytes) -> None:
    server.files = {"config.json": server.files["config.json"], WEIGHTS: data}
    with pytest.raises(HubFileError), hub.afar(ID):
        pass


def test_names_with_odd_letters_are_files_like_others(server: Hub) -> None:
    server.files["mod el#1.safetensors"] = data = safetensors_bytes({"a": np.ones(3, np.float32)})
    server.files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": "mod el#1.safetensors"}}).encode()
    assert (hub.local(ID) / "mod el#1.safetensors").read_bytes() == data


def test_of_gguf_files_one_has_to_be_given(server: Hub) -> None:
    server.files |= {"b-Q4_0.gguf": b"GGUF", "a-Q8_0.GGUF": b"GGUF"}
    assert hub.local(ID).is_dir()
    for name in [name for name in server.files if name.endswith((".safetensors", ".index.json", ".bin"))]:
        del server.files[name]
    with pytest.raises(HubGgufError, match=r"such as a-Q8_0\.GGUF.*\n.*hf download org/model a-Q8_0\.GGUF"):
        hub.local(ID)
    with pytest.raises(HubGgufError), hub.afar(ID):
        pass
