"""Conversations that go on after a restart: what the prefix cache has of a text goes to a file and comes back.

A restored text lies in the prefix cache, where the next prompt that begins with it finds it. What did not fill a page
when it was saved is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine import saved, saved_prefixes
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.session import Ints, Session


class Conversations:
    """Saves and restores texts of one model. Threads may share it: it takes the session's turns."""

    def __init__(self, session: Session, artifact: Artifact, prefix_cache: PrefixCache | None, context: int) -> None:
        self._session = session
        self._artifact = artifact
        self._prefixes = prefix_cache
        self._context = context

    def save(self, path: Path, tokens: Ints, extra: Mapping[str, Any]) -> None:
        """Save the first of these tokens that the context holds, with the pages there are, and `extra`, which is JSON.
        Raises SaveRefused."""
        kept = tokens[: self._context]
        with self._session.turns:
            sequence = self._session.new_sequence(self._max_pages)
            try:
                if self._prefixes is not None:
                    self._prefixes.match(sequence, kept)
                saved.save(path, self._session, self._artifact, sequence, kept, extra)
            finally:
                sequence.close()

    def restore(self, path: Path) -> tuple[Ints, Mapping[str, Any]]:
        """The tokens and what was saved with them; their pages are in the prefix cache now, as long as there is room.
        Raises SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere, SavedTooLong, OutOfPages."""
        with self._session.turns:
            found = saved.restore(path, self._session, self._artifact, self._context)
            try:
                if self._prefixes is not None:
                    self._prefixes.insert(found.sequence, found.tokens)
            finally:
                found.sequence.close()
        return found.tokens, found.extra

    def save_prefixes(self, path: Path) -> int:
        """Save the whole prefix cache, nothing where there is none; the tokens in it. Raises SaveRefused."""
        if self._prefixes is None:
            return 0
        with self._session.turns:
            return saved_prefixes.save(path, self._session, self._artifact, self._prefixes)

    def restore_prefixes(self, path: Path) -> int:
        """Add what `save_prefixes` saved to the prefix cache, as long as there is room; the tokens in that. Raises
        SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere."""
        if self._prefixes is None:
            return 0
        with self._session.turns:
            return saved_prefixes.restore(path, self._session, self._artifact, self._prefixes)

    @property
    def _max_pages(self) -> int:
        return -(-self._context // self._session.plan.page_size)
