"""The prefix cache on disk: what was read before a restart is not read after it, or one error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.saved_prefixes import restore, save
from dsv3c.runtime.engine.session import Request, Session
from tests.runtime import toy
from tests.runtime.sealed import parts, resealed

PAGES, PAGE_SIZE = 16, 4
FIRST = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]  # three full pages
SECOND = [3, 1, 4, 1, 2, 7, 1, 8, 2]  # two, of which the first is that of FIRST
OTHER = [9, 9, 9, 9, 8, 8, 8, 8, 7]


class Cached:
    """A session of the toy with a prefix cache, as a process has it."""

    def __init__(self, artifact: Artifact, pages: int = PAGES) -> None:
        self.artifact = artifact
        self.device = toy.ToyDevice(artifact.plan, pages * PAGE_SIZE)
        self.session = Session(artifact.plan, self.device, toy.VOCAB)
        self.prefixes = PrefixCache(self.session.pool)

    def read(self, tokens: list[int]) -> int:
        """Answer a text; how many of its tokens were there. What the model says is checked."""
        array = self.session.tokens(tokens)
        sequence = self.session.new_sequence()
        there = self.prefixes.match(sequence, array)
        try:
            (logits,) = self.session.run([Request(sequence, array[there:], "last")])
            self.prefixes.insert(sequence, array)
        finally:
            sequence.close()
        np.testing.assert_array_equal(logits[-1], toy.expected_logits(tokens)[-1])
        return there

    def save(self, path: Path) -> int:
        return save(path, self.session, self.artifact, self.prefixes)

    def restore(self, path: Path) -> int:
        return restore(path, self.session, self.artifact, self.prefixes)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.toy_artifact(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture
def before(artifact: Artifact) -> Cached:
    return Cached(artifact)


@pytest.fixture
def after(artifact: Artifact) -> Cached:
    return Cached(artifact)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> bytes:
    cached, path = Cached(artifact), tmp_path_factory.mktemp("saved") / "a"
    for text in (FIRST, SECOND, OTHER):
        cached.read(text)
    assert cached.save(path) == 6 * PAGE_SIZE
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    (tmp_path / "pages").write_bytes(whole)
    return tmp_path / "pages"


def test_what_was_read_before_a_restart_is_not_read_again(path: Path, after: Cached) -> None:
    assert after.restore(path) == 6 * PAGE_SIZE
    assert [after.read(text) for text in (FIRST, SECOND, OTHER)] == [12, 8, 8]
    assert [tokens for _, tokens, _ in after.device.steps] == [1, 1, 1]
    assert after.session.pool.free_pages == PAGES


def test_the_order_of_use_is_the_same_after_a_restart(before: Cached, after: Cached, tmp_path: Path) -> None:
    for text in (OTHER, SECOND, FIRST, SECOND[:6]):
        before.read(text)
    before.save(tmp_path / "pages")
    after.restore(tmp_path / "pages")
    assert list(after.prefixes.by_use()) == list(before.prefixes.by_use())


@pytest.mark.parametrize(("pages", "found"), [(1, [0, 0, 4]), (2, [0, 0, 8]), (4, [4, 8, 8]), (5, [8, 8, 8])])
def test_a_smaller_cache_takes_what_was_used_last_from_its_beginning(
    pages: int, found: list[int], path: Path, artifact: Artifact
) -> None:
    small = Cached(artifact, pages)
    assert small.restore(path) == pages * PAGE_SIZE
    there = []
    for text in (FIRST, SECOND, OTHER):
        sequence = small.session.new_sequence()
        there.append(small.prefixes.match(sequence, small.session.tokens(text)))
        sequence.close()
    assert there == found


def test_pages_that_a_sequence_is_using_are_saved_before_all_others(
    before: Cached, artifact: Artifact, tmp_path: Path
) -> None:
    before.read(FIRST)
    before.read(OTHER)
    sequence = before.session.new_sequence()
    before.prefixes.match(sequence, before.session.tokens(FIRST))
    before.save(tmp_path / "pages")
    small = Cached(artifact, 3)
    small.restore(tmp_path / "pages")
    assert list(small.prefixes.by_use()) == sequence.keys


def test_what_is_cached_already_stays_and_counts_as_used(path: Path, after: Cached) -> None:
    own = [5] * 9
    for text in (own, SECOND):
        after.read(text)
    pages = after.prefixes.by_use()
    after.restore(path)
    assert pages.items() <= after.prefixes.by_use().items()
    assert list(after.prefixes.by_use())[-2:] == list(pages)[-2:], "what was read before, except what came again"
    assert [after.read(text) for text in (FIRST, SECOND, OTHER, own)] == [12, 8, 8, 8]
    assert after.session.pool.free_pages == PAGES


def test_an_empty_cache_is_saved_too(before: Cached, after: Cached, tmp_path: Path) -> None:
    assert (before.save(tmp_path / "pages"), after.restore(tmp_path / "pages")) == (0, 0)


def test_other_programs_can_read_the_file(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(path)
    assert tensors["keys"].shape == (6, 32)
    assert tensors["cache.0"][: 2 * PAGE_SIZE, 0].tolist() == OTHER[:8]


def refused(path: Path, cached: Cached) -> str:
    """What restoring says; nothing has changed."""
    pool, known = cached.session.pool, cached.prefixes.by_use()
    rows = {name: cache.copy() for name, cache in cached.device.caches.items()}
    free = (pool.free_pages, pool.idle_pages)
    with pytest.raises(errors.RequestFault) as caught:
        cached.restore(path)
    assert (pool.free_pages, pool.idle_pages, cached.prefixes.by_use()) == (*free, known)
    for name, cache in rows.items():
        np.testing.assert_array_equal(cached.device.caches[name], cache)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("keys", {"shape": [12, 16]}, "keys: has the shape (12, 16) for rows of 24 tokens"),
        ("keys", {"dtype": "I8"}, "keys: is int8 of 2 dimensions"),
        ("keys", {"shape": [192]}, "keys: is uint8 of 1 dimensions"),
        ("before", {"dtype": "F32"}, "before: is float32 of 1 dimensions"),
    ],
)
def test_keys_of_another_kind_are_refused(
    name: str, entry: Any, reason: str, path: Path, whole: bytes, after: Cached
) -> None:
    header, _ = parts(whole)
    header[name] |= entry
    path.write_bytes(resealed(whole, header))
    assert f"SavedDamaged: {path} is a damaged prefix cache: {reason}" in refused(path, after)


@pytest.mark.parametrize(("at", "place"), [(0, 0), (1, 1), (5, 6), (2, -2), (0, 2**31 - 1)])
def test_a_page_that_does_not_stand_behind_what_it_continues_is_refused(
    at: int, place: int, path: Path, whole: bytes, after: Cached
) -> None:
    header, _ = parts(whole)
    at = 8 + int.from_bytes(whole[:8], "little") + header["before"]["data_offsets"][0] + 4 * at
    path.write_bytes(resealed(whole[:at] + place.to_bytes(4, "little", signed=True) + whole[at + 4 :], header))
    assert "before: names no page that stands before each" in refused(path, after)


def test_a_key_that_is_there_twice_is_refused(path: Path, whole: bytes, after: Cached) -> None:
    header, _ = parts(whole)
    at = 8 + int.from_bytes(whole[:8], "little") + header["keys"]["data_offsets"][0]
    path.write_bytes(resealed(whole[: at + 32] + whole[at : at + 32] + whole[at + 64 :], header))
    assert "keys: has one of them twice" in refused(path, after)


def test_a_device_that_fails_while_rows_are_written_leaves_no_page_taken(
    path: Path, after: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise errors.DeviceLost(device="toy", what="rows")

    monkeypatch.setattr(after.device, "write_slots", fail)
    with pytest.raises(errors.DeviceLost):
        after.restore(path)
    assert (after.session.pool.free_pages, after.prefixes.cached_pages) == (PAGES, 0)


TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), max_size=8)


@given(TEXTS, TEXTS, st.integers(1, PAGES))
@settings(max_examples=50, phases=[Phase.generate])
def test_whatever_was_read_the_longest_used_is_left_out_and_nothing_is_wrong(
    place: Path, artifact: Artifact, texts: list[list[int]], own: list[list[int]], pages: int
) -> None:
    before, after = Cached(artifact), Cached(artifact, max(pages, 9))
    for text in texts:
        before.read(text)
    for text in own:
        after.read(text)
    before.save(place)
    room, kept = after.prefixes.room, after.prefixes.by_use()
    saved_keys = list(before.prefixes.by_use())
    assert after.restore(place) == min(room, len(saved_keys)) * PAGE_SIZE
    found = list(after.prefixes.by_use())
    assert found[: min(room, len(saved_keys))] == saved_keys[:room]
    assert set(found) == set(saved_keys[:room]) | set(kept)
    for text in [*texts, *own]:
        after.read(text)
    assert after.session.pool.free_pages == after.session.pool.pages


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "pages"
