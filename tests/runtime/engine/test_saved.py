"""Conversations on disk: they go on as if never interrupted, or one error says why not and nothing changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine import saved_file
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.saved import require_place, restore, save
from dsv3c.runtime.engine.session import Request, Session
from tests.runtime import toy
from tests.runtime.sealed import parts, resealed

CONTEXT, PAGES = 40, 16
TOKENS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], np.int32)
FED = 9  # of which the sequence has read so many


def opened(artifact: Artifact) -> Session:
    return Session(artifact.plan, toy.ToyDevice(artifact.plan, PAGES * artifact.plan.page_size), toy.VOCAB)


def feed(session: Session, sequence: Sequence, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (found,) = session.run([Request(sequence, tokens, "last")])
    return found[-1]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.toy_artifact(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture
def session(artifact: Artifact) -> Session:
    return opened(artifact)


def written(path: Path, artifact: Artifact, extra: dict[str, Any] | None = None) -> Path:
    """A conversation whose pages lie scattered."""
    session = opened(artifact)
    sequence, between = session.new_sequence(), session.new_sequence()
    feed(session, sequence, TOKENS[:3])
    feed(session, between, TOKENS)
    feed(session, sequence, TOKENS[3:FED])
    assert np.any(np.diff(sequence.pages) != 1)
    save(path, session, artifact, sequence, TOKENS, extra)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, artifact: Artifact) -> bytes:
    return written(tmp_path_factory.mktemp("saved") / "a", artifact, {"messages": ["Grüß Gott"]}).read_bytes()


@pytest.fixture
def path(tmp_path: Path, whole: bytes) -> Path:
    (tmp_path / "talk").write_bytes(whole)
    return tmp_path / "talk"


def test_a_conversation_goes_on_in_another_process_without_being_read_again(
    path: Path, artifact: Artifact, session: Session
) -> None:
    found = restore(path, session, artifact, CONTEXT)
    np.testing.assert_array_equal(found.tokens, TOKENS)
    assert (found.sequence.length, found.extra) == (FED, {"messages": ["Grüß Gott"]})
    np.testing.assert_array_equal(feed(session, found.sequence, TOKENS[FED:]), toy.expected_logits(TOKENS)[-1])
    assert [tokens for _, tokens, _ in session.device.steps] == [TOKENS.size - FED]  # type: ignore[attr-defined]
    found.sequence.close()
    assert session.pool.free_pages == PAGES


def test_an_empty_conversation_is_saved_too(tmp_path: Path, artifact: Artifact, session: Session) -> None:
    save(tmp_path / "new", session, artifact, session.new_sequence(), TOKENS[:0], {"system": "be brief"})
    found = restore(tmp_path / "new", session, artifact, CONTEXT)
    assert (found.tokens.size, found.sequence.length, found.extra) == (0, 0, {"system": "be brief"})


def test_long_runs_of_pages_are_moved_in_pieces(
    tmp_path: Path, artifact: Artifact, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_file, "_RUN", 2)
    sequence = session.new_sequence()
    feed(session, sequence, TOKENS)
    save(tmp_path / "a", session, artifact, sequence, TOKENS)
    other = opened(artifact)
    found = restore(tmp_path / "a", other, artifact, CONTEXT)
    following = np.array([7], np.int32)
    np.testing.assert_array_equal(
        feed(other, found.sequence, following), toy.expected_logits([*TOKENS.tolist(), 7])[-1]
    )


def test_other_programs_can_read_the_file(path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(path)
    np.testing.assert_array_equal(tensors["tokens"], TOKENS)
    np.testing.assert_array_equal(tensors["cache.0"][:, 0], TOKENS[:FED])


def test_whether_one_may_be_saved_somewhere_is_known_before(
    path: Path, artifact: Artifact, session: Session, tmp_path: Path
) -> None:
    require_place(path)
    save(path, session, artifact, session.new_sequence(), TOKENS[:1])
    assert restore(path, session, artifact, CONTEXT).tokens.tolist() == [3]
    other = tmp_path / "novel.txt"
    other.write_text("It was a dark night")
    for place in (other, tmp_path, tmp_path / "nowhere" / "talk"):
        with pytest.raises(errors.SaveRefused, match="cannot save the conversation as"):
            require_place(place)


def refused(path: Path, artifact: Artifact, session: Session, context: int = CONTEXT) -> str:
    """What restoring says; nothing has changed."""
    before = {name: cache.copy() for name, cache in session.device.caches.items()}  # type: ignore[attr-defined]
    free = session.pool.free_pages
    with pytest.raises(errors.RequestFault) as caught:
        restore(path, session, artifact, context)
    assert session.pool.free_pages == free
    for name, cache in before.items():
        np.testing.assert_array_equal(session.device.caches[name], cache)  # type: ignore[attr-defined]
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_conversation_needs_room(path: Path, artifact: Artifact, session: Session) -> None:
    assert refused(path, artifact, session, TOKENS.size - 1).startswith(f"SavedTooLong: {path} has 11 tokens")
    session.new_sequence().reserve((PAGES - 2) * session.plan.page_size)
    assert "has 2 free pages of 4 tokens, 3 are needed" in refused(path, artifact, session)


def test_a_part_of_the_weights_is_not_all_of_them(path: Path, artifact: Artifact, session: Session) -> None:
    other = replace(artifact, parts=("a lower side",))
    assert refused(path, other, session).startswith("SavedElsewhere")


def test_a_folder_or_a_missing_file_is_refused(tmp_path: Path, artifact: Artifact, session: Session) -> None:
    with pytest.raises(errors.SavedInvalid, match="it is a folder"):
        restore(tmp_path, session, artifact, CONTEXT)
    with pytest.raises(errors.FileUnreadable, match="No such file"):
        restore(tmp_path / "none", session, artifact, CONTEXT)


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        ("cache.0", {"dtype": "I32"}, r"cache.0: is int32 of the shape (9, 4), not float32"),
        ("cache.1.codes", {"shape": [27]}, "cache.1.codes: is int8 of the shape (27,)"),
        ("cache.1", {"shape": [4, 9]}, "cache.1: is float32 of the shape (4, 9)"),
        ("tokens", {"dtype": "F32"}, "tokens: is float32"),
    ],
)
def test_rows_of_another_kind_are_refused(
    name: str, entry: Any, reason: str, path: Path, whole: bytes, artifact: Artifact, session: Session
) -> None:
    header, _ = parts(whole)
    header[name] |= entry
    path.write_bytes(resealed(whole, header))
    assert f"SavedDamaged: {path} is a damaged conversation: {reason}" in refused(path, artifact, session)


def test_a_token_that_the_model_does_not_have_is_refused(
    path: Path, whole: bytes, artifact: Artifact, session: Session
) -> None:
    header, _ = parts(whole)
    at = 8 + int.from_bytes(whole[:8], "little") + header["tokens"]["data_offsets"][0]
    path.write_bytes(resealed(whole[:at] + (toy.VOCAB).to_bytes(4, "little") + whole[at + 4 :], header))
    assert refused(path, artifact, session).startswith("TokenOutOfRange")
