"""Conversations on disk: the tokens of a sequence with its rows of every cache, to go on without reading them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine import saved_file
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.saved_file import Content, Kind, SavedFile
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.errors import PageMisuse, SavedTooLong, WeightsInvalid

KIND = Kind("conversation", version=1)


@dataclass(frozen=True)
class Saved:
    """A conversation as it was: `sequence` holds the first `sequence.length` of its tokens, the others are still to be
    fed. extra: what else was saved with it."""

    tokens: Ints
    sequence: Sequence
    extra: Mapping[str, Any]


def require_place(path: Path) -> None:
    """Raises SaveRefused unless a conversation may be saved there: in a folder that is there, over nothing but an
    earlier one."""
    saved_file.require_place(path, KIND)


def save(
    path: Path,
    session: Session,
    artifact: Artifact,
    sequence: Sequence,
    tokens: Ints,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save `tokens`, the first of which the sequence holds. extra: further JSON. The file is there as a whole, or what
    was there before is. Raises SaveRefused."""
    if tokens.size < sequence.length:
        reason = f"the sequence holds {sequence.length} tokens, {tokens.size} are to be saved"
        raise PageMisuse(page="-", reason=reason)
    content = Content({"tokens": tokens.astype(np.int32)}, sequence.pages, sequence.length, extra or {})
    saved_file.write(path, KIND, session, artifact, content)


def restore(path: Path, session: Session, artifact: Artifact, context: int) -> Saved:
    """The conversation, in a new sequence of at most `context` tokens.

    Raises SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere, SavedTooLong, OutOfPages, and then nothing changed.
    """
    with saved_file.opened(path, KIND, session, artifact, {"tokens"}) as found:
        size = found.tensors["tokens"].elements
        if found.length > size:
            raise WeightsInvalid(where="tokens", reason=f"are {size}, fewer than the rows of {found.length}")
        if size > context:
            raise SavedTooLong(path=path, tokens=size, context=context, largest=session.plan.context)
        tokens = session.tokens(found.array("tokens", "int32", 1, 4 * context))
        return Saved(tokens, _filled(session, found, context), found.extra)


def _filled(session: Session, found: SavedFile, context: int) -> Sequence:
    sequence = session.new_sequence(-(-context // session.plan.page_size))
    sequence.reserve(found.length)
    try:
        sequence.length = found.length
        found.fill(sequence.pages, found.length)
    except BaseException:
        sequence.close()
        raise
    return sequence
