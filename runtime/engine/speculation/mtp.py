"""Drafts of the model's own layer for multi-token prediction (DeepSeek-V3 report, arXiv 2412.19437, section 2.2).

The layer takes the state of a token and the token after it, and predicts the one after that. For further ones it goes
on from its own state. It has a cache of its own sequence, which begins with the few states that the model gave just
before the first draft: positions are relative, and nothing is read, or kept, of what stood before. A gap in the states
is passed over, and a window that is full begins again with the last ones. That costs little acceptance
(docs/36-speculation.md).
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.engine.speculation.growth import cost
from dsv3c.runtime.errors import ContextOverflow, OutOfPages, UnknownEntry

WINDOW = 512  # tokens of the layer's own cache, fewer where the plan's context is shorter
HEARS = 4  # states before the first draft: the pending token's, and those of three drafts


@dataclass
class _State:
    """Of one lane: the layer's sequence; the last states [n, D] that it has not read, each with the token [n] that came
    after; the position behind them."""

    sequence: Sequence
    hidden: Floats
    tokens: Ints
    end: int


class _Ahead(NamedTuple):
    """Of the last token of each sequence: logits [S, V], valid until the next step, and the layer's state [S, D]."""

    logits: Floats
    hidden: Floats | None


class MtpDrafter:
    """Raises UnknownEntry if the artifact has no such layer."""

    name = "multi-token prediction"

    def __init__(self, session: Session, most: int = 3) -> None:
        plan = session.plan
        if "mtp" not in plan.entries:
            raise UnknownEntry(name="mtp", known=", ".join(plan.entries))
        # A layer that does not give its own state predicts one token.
        self.most = most if "hidden" in plan.entries["mtp"].outputs else 1
        self.cost = cost(plan, plan, "mtp")
        bound = min(plan.entries["mtp"].max_tokens, plan.bounds.T)
        self.hears = min(HEARS, bound)
        self._session = session
        self._pages = self.pages(plan.page_size)
        self._lanes = min(plan.bounds.S, plan.bounds.R, bound // self.hears)  # of a step
        self._states: dict[Lane, _State] = {}

    @staticmethod
    def pages(page_size: int) -> int:
        """Pages that a lane takes beside its own."""
        return -(-WINDOW // page_size)

    def behind(self, lane: Lane) -> int:
        return 0

    def read(self, lanes: Many[Lane], most: int) -> int:
        return 0

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        end = lane.sequence.length
        count = min(end - start, self.hears)
        if hidden is None or count <= 0 or lane.size <= end:
            return
        states = hidden[end - start - count : end - start].copy()
        tokens = lane.tokens[end - count + 1 : end + 1].copy()
        state = self._states.get(lane)
        if state is None:
            self._states[lane] = _State(self._session.new_sequence(self._pages), states, tokens, end)
            return
        state.hidden = np.concatenate([state.hidden, states])[-self.hears :]
        state.tokens = np.concatenate([state.tokens, tokens])[-self.hears :]
        state.end = end

    def forget(self, lane: Lane) -> None:
        state = self._states.pop(lane, None)
        if state is not None:
            state.sequence.close()

    def give_back(self) -> bool:
        held = [state for state in self._states.values() if state.sequence.pages.size]
        for state in held:
            state.sequence.close()
        return bool(held)

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        found: list[Ints] = []
        for first in range(0, len(drafting), self._lanes):
            found += self._propose(drafting[first : first + self._lanes], count)
        return found

    def _propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        ready = [each for each in drafting if self._prepare(each.lane, count)]
        if not ready:
            return [NO_TOKENS for _ in drafting]
        states = [self._states[each.lane] for each in ready]
        logits, hidden = self._catch_up(states)
        lengths = [state.sequence.length for state in states]
        drafts: list[list[int]] = [[] for _ in ready]
        for ahead in range(count):
            for each, row, tokens in zip(ready, logits, drafts, strict=True):
                tokens.append(each.sampler.guess(row, ahead))
            if ahead + 1 == count or hidden is None:
                break
            last = [np.array(tokens[-1:], np.int32) for tokens in drafts]
            logits, hidden = self._step(states, last, list(hidden[:, None]))
        for state, length in zip(states, lengths, strict=True):
            state.sequence.truncate(length)
        by_lane = {each.lane: np.array(tokens, np.int32) for each, tokens in zip(ready, drafts, strict=True)}
        return [by_lane.get(each.lane, NO_TOKENS) for each in drafting]

    def _prepare(self, lane: Lane, count: int) -> bool:
        """Whether there is the state of the last token, and pages for what is not read."""
        state = self._states.get(lane)
        if state is None or not state.tokens.size or state.end != lane.sequence.length:
            return False
        needed = state.tokens.size + count
        if state.sequence.length + needed > min(WINDOW, state.sequence.capacity):
            state.sequence.close()
        try:
            self._session.reserve(state.sequence, state.sequence.length + needed)
        except (ContextOverflow, OutOfPages):
            return False
        return True

    def _catch_up(self, states: Many[_State]) -> _Ahead:
        """The layer reads the states that it has not; rows of the last ones."""
        ahead = self._step(states, [state.tokens for state in states], [state.hidden for state in states])
        for state in states:
            state.hidden, state.tokens = state.hidden[:0], NO_TOKENS
        return ahead

    def _step(self, states: Many[_State], tokens: Many[Ints], hidden: Many[Floats]) -> _Ahead:
        """One step of the layer."""
        counts = [part.size for part in tokens]
        starts = [state.sequence.length for state in states]
        last = np.cumsum(counts) - 1
        output = self._session.step(
            np.concatenate(tokens),
            np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)]),
            np.repeat(np.arange(len(states)), counts),
            [state.sequence.pages for state in states],
            last,
            entry="mtp",
            hidden=np.concatenate(hidden),
        )
        for state, count in zip(states, counts, strict=True):
            state.sequence.length += count
        return _Ahead(output.logits, None if output.hidden is None else output.hidden[last])
