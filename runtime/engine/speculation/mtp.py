"""Drafts of the model's own layer for multi-token prediction (DeepSeek-V3 report, arXiv 2412.19437, section 2.2).

The layer takes the state of a token and the token after it, and predicts the one after that. For further ones it goes
on from its own state. It has a cache of its own sequence: positions are relative, so it begins with the last states of
a prompt and not with the first, and a window that is full begins again with the last ones. That costs little acceptance
and leaves reading prompts as fast as without.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dsv3c.runtime.devices.device import Floats
from dsv3c.runtime.engine.cache import Sequence
from dsv3c.runtime.engine.lanes import NO_TOKENS, Lane
from dsv3c.runtime.engine.session import Ints, Session
from dsv3c.runtime.engine.speculation import Drafting
from dsv3c.runtime.errors import OutOfPages, UnknownEntry

WINDOW = 512  # tokens of the layer's own cache
BEGIN = 128  # of them, so many at first and after a window was full


@dataclass
class _State:
    """Of one lane: the layer's sequence; states [n, D] that it has not read, of the tokens from position `at` on."""

    sequence: Sequence
    at: int = 0
    unread: list[Floats] = field(default_factory=list)
    count: int = 0  # of the unread


class _Ahead(NamedTuple):
    """Of the last token of each sequence: logits [S, V], valid until the next step, and the layer's state [S, D]."""

    logits: Floats
    hidden: Floats | None


class MtpDrafter:
    """Raises UnknownEntry if the artifact has no such layer."""

    name = "multi-token prediction"
    reads_states = True

    def __init__(self, session: Session, most: int = 3) -> None:
        plan = session.plan
        if "mtp" not in plan.entries:
            raise UnknownEntry(name="mtp", known=", ".join(plan.entries))
        # A layer that does not give its own state predicts one token.
        self.most = most if "hidden" in plan.entries["mtp"].outputs else 1
        self._session = session
        self._pages = -(-WINDOW // plan.page_size)
        self._bound = min(plan.entries["mtp"].max_tokens, plan.bounds.T)
        self._states: dict[Lane, _State] = {}
        self._prompts: list[Lane] = []

    @staticmethod
    def pages(page_size: int) -> int:
        """Pages that a lane takes beside its own."""
        return -(-WINDOW // page_size)

    def saw(self, lane: Lane, start: int, hidden: Floats | None) -> None:
        read = lane.sequence.length - start
        if hidden is None or read <= 0:
            return
        state = self._states.get(lane)
        if state is None:
            state = self._states[lane] = _State(self._session.new_sequence(self._pages))
        if lane.history.generated.size == 1:
            self._prompts.append(lane)
        goes_on = start == state.at + state.count
        if goes_on and state.sequence.length + state.count + read + self.most < WINDOW:
            state.unread.append(hidden[:read].copy())
            state.count += read
            return
        kept = np.concatenate([*(state.unread if goes_on else ()), hidden[:read]])[-BEGIN:]
        self._restart(state, lane.sequence.length - len(kept))
        state.unread, state.count = [kept], len(kept)

    def follow(self) -> None:
        """Prompts are read as soon as the model has: what drafting costs later is drafting alone."""
        prompts, self._prompts = self._prompts, []
        for lane in prompts:
            if lane.ready and self._prepare(lane, 0):
                self._catch_up([lane], [self._states[lane]])

    def forget(self, lane: Lane) -> None:
        state = self._states.pop(lane, None)
        if state is not None:
            state.sequence.close()

    def give_back(self) -> bool:
        held = [state for state in self._states.values() if state.sequence.pages.size]
        for state in held:
            self._restart(state, state.at + state.count)
        return bool(held)

    def propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        found: list[Ints] = []
        bounds = self._session.plan.bounds
        most = min(bounds.S, bounds.R)
        for first in range(0, len(drafting), most):
            found += self._propose(drafting[first : first + most], count)
        return found

    def _propose(self, drafting: Many[Drafting], count: int) -> list[Ints]:
        ready = [each for each in drafting if self._prepare(each.lane, count)]
        if not ready:
            return [NO_TOKENS for _ in drafting]
        states = [self._states[each.lane] for each in ready]
        logits, hidden = self._catch_up([each.lane for each in ready], states)
        lengths = [state.sequence.length for state in states]
        drafts: list[list[int]] = [[] for _ in ready]
        for ahead in range(count):
            for each, row, tokens in zip(ready, logits, drafts, strict=True):
                tokens.append(each.sampler.guess(row, ahead))
            if ahead + 1 == count or hidden is None:
                break
            logits, hidden = self._step(states, [tokens[-1:] for tokens in drafts], list(hidden[:, None]))
        for state, length in zip(states, lengths, strict=True):
            state.sequence.truncate(length)
        by_lane = {each.lane: np.array(tokens, np.int32) for each, tokens in zip(ready, drafts, strict=True)}
        return [by_lane.get(each.lane, NO_TOKENS) for each in drafting]

    def _prepare(self, lane: Lane, count: int) -> bool:
        """Whether there are states to begin with, and pages for them."""
        state = self._states.get(lane)
        if state is None or not state.unread:
            return False
        try:
            self._session.reserve(state.sequence, state.sequence.length + state.count + count)
        except OutOfPages:
            return False
        return True

    def _catch_up(self, lanes: Many[Lane], states: Many[_State]) -> _Ahead:
        """The layer reads the states it has not, each with the token that came after; rows of the last ones."""
        hidden = [np.concatenate(state.unread) for state in states]
        tokens = []
        for lane, state, rows in zip(lanes, states, hidden, strict=True):
            tokens.append(lane.tokens[state.at + 1 : state.at + 1 + len(rows)].tolist())
            state.at += len(rows)
            state.unread, state.count = [], 0
        longest = self._bound // len(states)
        while max(len(part) for part in tokens) > longest:
            head = [part[:-1][:longest] for part in tokens]
            self._step_some(states, head, [rows[: len(part)] for rows, part in zip(hidden, head, strict=True)])
            hidden = [rows[len(part) :] for rows, part in zip(hidden, head, strict=True)]
            tokens = [part[len(done) :] for part, done in zip(tokens, head, strict=True)]
        return self._step(states, tokens, hidden)

    def _step_some(self, states: Many[_State], tokens: Many[list[int]], hidden: Many[Floats]) -> None:
        some = [index for index, part in enumerate(tokens) if part]
        self._step([states[i] for i in some], [tokens[i] for i in some], [hidden[i] for i in some])

    def _step(self, states: Many[_State], tokens: Many[list[int]], hidden: Many[Floats]) -> _Ahead:
        """One step of the layer."""
        counts = [len(part) for part in tokens]
        starts = [state.sequence.length for state in states]
        last = np.cumsum(counts) - 1
        output = self._session.step(
            np.concatenate([np.array(part, np.int32) for part in tokens]),
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

    def _restart(self, state: _State, at: int) -> None:
        state.sequence.close()
        state.at, state.unread, state.count = at, [], 0
