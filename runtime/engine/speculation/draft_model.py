"""Drafts of a smaller model with the same tokens, which reads the text beside the large one."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane, common_length
from dsv3c.runtime.engine.session import Ints, Request, Session
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.errors import ContextOverflow, OutOfPages


class ModelDrafter:
    """Runs `session`, whose pages are its own: no lane of the large model waits for them."""

    name = "draft model"
    reads_states = False

    def __init__(self, session: Session, max_pages: int, most: int = 5) -> None:
        self.most = most
        self._session = session
        self._max_pages = max_pages
        self._texts: dict[Lane, tuple[Sequence, Ints]] = {}  # what the draft's cache holds

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        feeds = [self._behind(each.lane, each.lane.size, count) for each in drafting]
        ready = [(each, feed) for each, feed in zip(drafting, feeds, strict=True) if feed is not None]
        drafts: dict[Lane, list[int]] = {each.lane: [] for each, _ in ready}
        tokens = [feed for _, feed in ready]
        for ahead in range(count if ready else 0):
            requests = [
                Request(self._texts[each.lane][0], feed, "last") for (each, _), feed in zip(ready, tokens, strict=True)
            ]
            rows = self._session.run(requests)
            for (each, _), row in zip(ready, rows, strict=True):
                drafts[each.lane].append(each.sampler.guess(row[0], ahead))
            tokens = [np.array(drafts[each.lane][-1:], np.int32) for each, _ in ready]
        for each, _ in ready:
            sequence, held = self._texts[each.lane]
            self._texts[each.lane] = sequence, np.append(held, np.array(drafts[each.lane][:-1], np.int32))
        return [np.array(drafts.get(each.lane, ()), np.int32) for each in drafting]

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        """A prompt is read with the model: what drafting costs then is drafting alone."""
        if lane.history.generated.size <= 1:
            feed = self._behind(lane, lane.sequence.length, 0)
            if feed is not None and feed.size:
                self._session.run([Request(self._texts[lane][0], feed, "none")])

    def follow(self) -> None:
        pass

    def forget(self, lane: Lane) -> None:
        sequence, _ = self._texts.pop(lane, (None, NO_TOKENS))
        if sequence is not None:
            sequence.close()

    def give_back(self) -> bool:
        return False

    def _behind(self, lane: Lane, size: int, count: int) -> Ints | None:
        """Of the lane's first `size` tokens those that the draft has still to read, at least the last; None if there is
        no room for them and `count` more. What it holds of drafts that were wrong is rolled back."""
        tokens = lane.tokens[:size]
        if lane not in self._texts:
            self._texts[lane] = self._session.new_sequence(self._max_pages), NO_TOKENS
        sequence, held = self._texts[lane]
        sequence.truncate(min(common_length(held, tokens), tokens.size - 1))
        try:
            self._session.reserve(sequence, tokens.size + count)
        except (OutOfPages, ContextOverflow):
            return None
        finally:
            self._texts[lane] = sequence, tokens[: sequence.length].copy()
        self._texts[lane] = sequence, tokens.copy()
        return tokens[sequence.length :]
