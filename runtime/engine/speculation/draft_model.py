"""Drafts of a smaller model with the same tokens, which reads the text once it is asked.

How much of a text it has read by then is a matter of cost (`Lengths.readable`): it may begin with the last tokens, as
drafts are only guesses.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane, common_length
from dsv3c.runtime.engine.session import Ints, Request, Session
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.errors import ContextOverflow, OutOfPages


@dataclass
class _Text:
    """Of one lane: what the draft's cache holds, the lane's tokens from `first` on and drafts behind them."""

    sequence: Sequence
    first: int
    held: Ints


class ModelDrafter:
    """Runs `session`, whose pages are its own: no lane of the large model waits for them. cost: see Drafter."""

    name = "draft model"
    hears = 0

    def __init__(self, session: Session, cost: Callable[[int], float] = float, most: int = 5) -> None:
        self.most = most
        self.cost = cost
        self._session = session
        self._room = session.plan.bounds.P * session.plan.page_size // 2  # of a text that is longer than its context
        self._texts: dict[Lane, _Text] = {}

    def behind(self, lane: Lane) -> int:
        text = self._texts.get(lane)
        common = 0 if text is None else _common(text, lane)
        return lane.size - text.first - common if text is not None and common else lane.size

    def read(self, lanes: Many[Lane], most: int) -> int:
        most = min(most, self._room)
        requests = []
        for lane in lanes:
            if self.behind(lane) > most:
                self._begin(lane, max(0, lane.size - most))
            feed = self._lacking(lane, 0)
            if feed is not None and feed.size > 1:
                text = self._texts[lane]
                text.held = text.held[:-1]
                requests.append(Request(text.sequence, feed[:-1], "none"))
        self._session.run(requests)
        return sum(request.tokens.size for request in requests)

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        feeds = [self._lacking(each.lane, count) for each in drafting]
        ready = [(each, feed) for each, feed in zip(drafting, feeds, strict=True) if feed is not None]
        drafts: dict[Lane, list[int]] = {each.lane: [] for each, _ in ready}
        tokens = [feed for _, feed in ready]
        for ahead in range(count if ready else 0):
            requests = [
                Request(self._texts[each.lane].sequence, feed, "last")
                for (each, _), feed in zip(ready, tokens, strict=True)
            ]
            rows = self._session.run(requests)
            for (each, _), row in zip(ready, rows, strict=True):
                drafts[each.lane].append(each.sampler.guess(row[0], ahead))
            tokens = [np.array(drafts[each.lane][-1:], np.int32) for each, _ in ready]
        for each, _ in ready:
            text = self._texts[each.lane]
            text.held = np.append(text.held, np.array(drafts[each.lane][:-1], np.int32))
        return [np.array(drafts.get(each.lane, ()), np.int32) for each in drafting]

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        pass

    def forget(self, lane: Lane) -> None:
        text = self._texts.pop(lane, None)
        if text is not None:
            text.sequence.close()

    def give_back(self) -> bool:
        return False

    def _begin(self, lane: Lane, first: int) -> _Text:
        """Hold nothing, and what comes from the lane's token `first` on."""
        self.forget(lane)
        text = self._texts[lane] = _Text(self._session.new_sequence(), first, NO_TOKENS)
        return text

    def _lacking(self, lane: Lane, count: int) -> Ints | None:
        """Tokens of the lane that the draft has still to read, at least the last; None if there is no room for them and
        `count` more. What it holds of drafts that were wrong is rolled back."""
        text = self._texts.get(lane)
        if text is None or (text.held.size and not _common(text, lane)):
            text = self._begin(lane, 0)
        tokens = lane.tokens[text.first :]
        text.sequence.truncate(min(_common(text, lane), tokens.size - 1))
        text.held = tokens[: text.sequence.length].copy()
        try:
            self._session.reserve(text.sequence, tokens.size + count)
        except OutOfPages:
            return None
        except ContextOverflow:
            self.forget(lane)
            return None
        text.held = tokens.copy()
        return tokens[text.sequence.length :]


def _common(text: _Text, lane: Lane) -> int:
    """Tokens of the lane that the cache holds."""
    return common_length(text.held, lane.tokens[text.first :])
