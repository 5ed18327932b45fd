"""Responses that are kept to be gone on with, the last ones alone."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dsv3c.runtime.server.asked import Messages

MOST, MOST_CHARACTERS = 1_000, 32 << 20


@dataclass(frozen=True)
class Kept:
    """response: as it was answered. messages: the conversation with the answer, without instructions."""

    response: dict[str, Any]
    messages: Messages

    @property
    def characters(self) -> int:
        return len(json.dumps([self.response, self.messages]))


class Remembered:
    """By their ids; used by one event loop."""

    def __init__(self, most: int = MOST, characters: int = MOST_CHARACTERS) -> None:
        """characters: of the JSON of all."""
        self._kept: OrderedDict[str, tuple[Kept, int]] = OrderedDict()
        self._most, self._room = most, characters

    def keep(self, kept: Kept) -> None:
        """Those that were not used for longest give way; one that is too large for all the room is not kept."""
        size = kept.characters
        if size > self._room:
            return
        self._kept[kept.response["id"]] = kept, size
        while len(self._kept) > self._most or sum(size for _, size in self._kept.values()) > self._room:
            self._kept.popitem(last=False)

    def find(self, name: str) -> Kept | None:
        found = self._kept.get(name)
        if found is None:
            return None
        self._kept.move_to_end(name)
        return found[0]

    def forget(self, name: str) -> bool:
        """Whether it was there."""
        return self._kept.pop(name, None) is not None
