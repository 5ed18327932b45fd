"""What holds of every kind of saved file: it is saved whole or not at all, restored whole or refused."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine import saved, saved_prefixes
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.saved_file import Kind
from dsv3c.runtime.engine.session import Request, Session
from tests.runtime import toy
from tests.runtime.sealed import parts, resealed

PAGES, PAGE_SIZE, CONTEXT = 16, 4, 40
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)


class Process(ABC):
    """A process that saves and restores files of one kind, on the toy. own: an array that other kinds do not have."""

    kind: Kind
    own: str

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.device = toy.ToyDevice(artifact.plan, PAGES * PAGE_SIZE)
        self.session = Session(artifact.plan, self.device, toy.VOCAB)

    @abstractmethod
    def work(self) -> None:
        """Have something to save."""

    @abstractmethod
    def save(self, path: Path) -> None: ...

    @abstractmethod
    def restore(self, path: Path) -> None:
        """Also checks what is restored."""

    def state(self) -> tuple[Any, ...]:
        """What a refused file leaves as it was."""
        rows = {name: cache.tobytes() for name, cache in self.device.caches.items()}
        return self.session.pool.free_pages, self.session.pool.idle_pages, rows


class Talks(Process):
    kind, own = saved.KIND, "tokens"

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.sequence = self.session.new_sequence()

    def work(self) -> None:
        self.session.run([Request(self.sequence, TOKENS[:9], "last")])

    def save(self, path: Path) -> None:
        saved.save(path, self.session, self.artifact, self.sequence, TOKENS)

    def restore(self, path: Path) -> None:
        found = saved.restore(path, self.session, self.artifact, CONTEXT)
        assert found.sequence.length <= found.tokens.size <= CONTEXT
        found.sequence.close()


class Prefixes(Process):
    kind, own = saved_prefixes.KIND, "keys"

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        self.prefixes = PrefixCache(self.session.pool)

    def work(self) -> None:
        sequence = self.session.new_sequence()
        self.session.run([Request(sequence, TOKENS, "last")])
        self.prefixes.insert(sequence, TOKENS)
        sequence.close()

    def save(self, path: Path) -> None:
        saved_prefixes.save(path, self.session, self.artifact, self.prefixes)

    def restore(self, path: Path) -> None:
        assert saved_prefixes.restore(path, self.session, self.artifact, self.prefixes) == 2 * PAGE_SIZE

    def state(self) -> tuple[Any, ...]:
        return (*super().state(), list(self.prefixes.by_use()))


KINDS: tuple[type[Process], ...] = (Talks, Prefixes)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.toy_artifact(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> dict[type[Process], bytes]:
    """One of each kind."""
    found = {}
    for kind in KINDS:
        process, path = kind(artifact), tmp_path_factory.mktemp("saved") / "file"
        process.work()
        process.save(path)
        found[kind] = path.read_bytes()
    return found


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind.name)
def process(request: pytest.FixtureRequest, artifact: Artifact) -> Process:
    made: Process = request.param(artifact)
    return made


@pytest.fixture
def whole(process: Process, files: dict[type[Process], bytes]) -> bytes:
    return files[type(process)]


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    (tmp_path / "file").write_bytes(whole)
    return tmp_path / "file"


def refused(path: Path, process: Process) -> str:
    """What restoring says; nothing has changed."""
    before = process.state()
    with pytest.raises(errors.RequestFault) as caught:
        process.restore(path)
    assert process.state() == before
    return f"{type(caught.value).__name__}: {caught.value}"


def test_what_the_tests_seal_is_restored(path: Path, whole: bytes, process: Process) -> None:
    path.write_bytes(resealed(whole, *parts(whole)))
    process.restore(path)


def test_one_takes_the_place_of_an_earlier_one_and_of_nothing_else(
    path: Path, process: Process, files: dict[type[Process], bytes], tmp_path: Path
) -> None:
    process.save(path)
    novel, other = tmp_path / "novel.txt", tmp_path / "other"
    novel.write_text("It was a dark night")
    (another,) = (content for kind, content in files.items() if kind is not type(process))
    other.write_bytes(another)
    for place in (novel, other, tmp_path, tmp_path / "nowhere" / "file"):
        with pytest.raises(errors.SaveRefused, match=f"cannot save the {process.kind.name} as"):
            process.save(place)
    assert (novel.read_text(), other.read_bytes()) == ("It was a dark night", another)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "novel.txt", "other"]


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_could_not_be_saved_whole_leaves_what_was_there(
    fault: BaseException, path: Path, whole: bytes, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((errors.SaveRefused, KeyboardInterrupt), match=r"No space left on device|^$"):
        process.save(path)
    assert [file.read_bytes() for file in path.parent.iterdir()] == [whole]


def test_one_of_another_artifact_is_refused_by_name(path: Path, process: Process, tmp_path: Path) -> None:
    weights = toy.weights_bytes({"scale": np.full(1, 2, np.float32)})
    other = Artifact.open(toy.write_artifact(tmp_path / "other", weights__safetensors=weights))
    text = refused(path, type(process)(other))
    assert text.startswith(f"SavedElsewhere: {path} was saved with another artifact than {other.folder}: toy for x86")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data, other: b"", "SavedInvalid"),
        (lambda data, other: b"It was a dark and stormy night; the rain fell in torrents, at times.", "SavedInvalid"),
        (lambda data, other: toy.weights_bytes({"scale": np.ones(1, np.float32)}), "SavedInvalid"),
        (lambda data, other: other, "SavedInvalid"),
        (lambda data, other: data[:-1], "SavedDamaged"),
        (lambda data, other: data[: len(data) // 2], "SavedDamaged"),
        (lambda data, other: data + b"more", "SavedDamaged"),
        (lambda data, other: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:], "SavedDamaged"),
    ],
)
def test_a_file_that_is_not_whole_or_not_of_the_kind_is_refused(
    damage: Callable[[bytes, bytes], bytes],
    error: str,
    path: Path,
    whole: bytes,
    process: Process,
    files: dict[type[Process], bytes],
) -> None:
    (other,) = (content for kind, content in files.items() if kind is not type(process))
    path.write_bytes(damage(whole, other))
    process.work()
    assert refused(path, process).startswith(f"{error}: {path} is ")


def test_a_newer_format_is_said_to_be_so(path: Path, whole: bytes, process: Process) -> None:
    header, about = parts(whole)
    path.write_bytes(resealed(whole, header, about | {"version": 2, "extra": {}}))
    assert f"SavedNewer: {path} has the {process.kind.name} format 2" in refused(path, process)


@pytest.mark.parametrize("name", ["cache.0", "own"])
def test_an_array_that_has_another_name_is_missed(name: str, path: Path, whole: bytes, process: Process) -> None:
    name = process.own if name == "own" else name
    header, _ = parts(whole)
    header["other"] = header.pop(name)
    path.write_bytes(resealed(whole, header))
    text = refused(path, process)
    assert text.startswith(f"SavedDamaged: {path} is a damaged {process.kind.name}: ")
    assert f"{name}: is missing" in text or "other: is not expected" in text


def test_rows_of_another_kind_are_refused(path: Path, whole: bytes, process: Process) -> None:
    header, _ = parts(whole)
    header["cache.0"] |= {"dtype": "I32"}
    path.write_bytes(resealed(whole, header))
    assert "cache.0: is int32 of the shape" in refused(path, process)


def test_a_session_that_is_closed_neither_saves_nor_restores(path: Path, process: Process) -> None:
    process.session.close()
    with pytest.raises(errors.ModelClosed):
        process.restore(path)
    with pytest.raises(errors.ModelClosed):
        process.save(path)


@given(
    st.data(),
    st.sampled_from(KINDS),
    st.sampled_from(["bytes", "header", "about"]),
    st.sampled_from([None, -1, 0, 1, 2, 9, 64, 2**31, 2**63, 0.5, "", "F16", "x", [], [9], [9, 4], [0, 144], {}]),
)
@settings(max_examples=300, phases=[Phase.generate])
def test_whatever_the_bytes_are_it_is_restored_whole_or_refused(
    place: Path,
    artifact: Artifact,
    files: dict[type[Process], bytes],
    data: st.DataObject,
    kind: type[Process],
    part: str,
    value: Any,
) -> None:
    whole, process = files[kind], kind(artifact)
    header, about = parts(whole)
    changed = header if part == "header" else about
    if part == "bytes":
        content = bytearray(whole)
        content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        place.write_bytes(bytes(content[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))]))
    else:
        key = data.draw(st.sampled_from(sorted(changed)))
        inner = changed[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = value
        else:
            changed[key] = value
        place.write_bytes(resealed(whole, header, about))
    before = process.state()
    try:
        process.restore(place)
    except errors.RequestFault:
        assert process.state() == before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file"
