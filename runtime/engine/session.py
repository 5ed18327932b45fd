"""A session runs the plan: one step over a ragged batch, and whole requests cut into steps.

Shapes: T tokens of a step, R rows with logits, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dsv3c.runtime.artifact.plan import SHORT, Entry, Plan
from dsv3c.runtime.devices.device import Device, Floats
from dsv3c.runtime.engine.cache import PagePool, Sequence
from dsv3c.runtime.engine.expert_stats import ExpertStats
from dsv3c.runtime.engine.feed import Feed
from dsv3c.runtime.engine.sampling import FORMS, Draw
from dsv3c.runtime.errors import (
    ContextInvalid,
    Forked,
    ModelClosed,
    PageMisuse,
    StepInvalid,
    TokenOutOfRange,
    TokensInvalid,
    UnknownEntry,
)
from dsv3c.runtime.turns import Turns

Ints = NDArray[np.int32]
Want = Literal["none", "last", "all"]
_WANTS = get_args(Want)


class StepOutput(NamedTuple):
    """Views into the device's memory, valid until the next step: logits [R, V]; hidden [T, D] if the entry has it.

    drawn [R]: tokens that the device drew, of an entry that ends with them; there are no logits then. experts: what
    `Device.experts` says, where somebody asked.
    """

    logits: Floats
    hidden: Floats | None
    drawn: Ints | None = None
    experts: Mapping[int, Ints] | None = None


class Request(NamedTuple):
    """Tokens to append to a sequence and the logits wanted: of none, of the last, or of all of them.

    draws: how the device draws a token from each of these rows of logits, which are then not read; none or one a row.
    experts: whether it is told which experts its tokens visit.
    """

    sequence: Sequence
    tokens: Ints
    want: Want
    draws: tuple[Draw, ...] = ()
    experts: bool = False

    @property
    def rows(self) -> int:
        """Rows of logits that are wanted."""
        if self.want == "all":
            return self.tokens.size
        return min(1, self.tokens.size) if self.want == "last" else 0


@dataclass(frozen=True)
class Chunk:
    """What one step did for one request: its tokens [start, start + count); views as in StepOutput.

    logits [r, V] belong to the last r tokens of the chunk (r is 0, 1 or count); hidden is [count, D] or None. drawn [r]
    instead of logits if the requests have draws. experts, by layer: [count · experts a token], of a request that asks.
    """

    request: int
    start: int
    count: int
    logits: Floats
    hidden: Floats | None
    drawn: Ints | None = None
    experts: Mapping[int, Ints] | None = None


class _Given(NamedTuple):
    """A step as a caller wrote it: tokens, positions, sequence [T]; pages of each sequence; rows [R]."""

    tokens: Ints
    positions: Ints
    sequence: Ints
    pages: Many[Ints]
    rows: Ints


class _Piece(NamedTuple):
    """Tokens [start, start + size) of a request, the last `rows` of which have logits."""

    request: int
    start: int
    size: int
    rows: int


class Session:
    """Runs steps on a device whose cache pool is handed out in pages. Used by one thread at a time.

    Raises ModelClosed after `close`, Forked in a forked child, where the device does not bear that.
    """

    def __init__(self, plan: Plan, device: Device, vocab_size: int) -> None:
        self.plan = plan
        self.device = device
        self.vocab_size = vocab_size
        self.pool = PagePool(device.slots // plan.page_size, plan.page_size)
        self._feed = Feed(plan, device.inputs)
        self.turns = Turns()  # at the device
        self.expert_stats: list[ExpertStats] = []  # who counts the experts that tokens visit
        self.tells_experts = False  # until it was seen that every entry does
        self.closed = False

    def close(self) -> None:
        """Give the device back; safe to call twice."""
        with self.turns:
            if not self.closed:
                self.closed = True
                if self.usable:
                    self.device.close()

    def new_sequence(self, max_pages: int | None = None) -> Sequence:
        """An empty sequence of at most `max_pages` pages (the plan's bound by default)."""
        most = self.plan.bounds.P
        if max_pages is not None and (type(max_pages) is not int or max_pages < 1):
            raise ContextInvalid(name="max_pages", value=max_pages, limit=most)
        return Sequence(self.pool, min(max_pages or most, most))

    def tokens(self, ids: ArrayLike) -> Ints:
        """Token ids as i32[n]. Raises TokensInvalid, TokenOutOfRange."""
        try:
            array = np.asarray(ids)
            if array.dtype.kind == "f":  # integers beyond 64 bits become floats
                array = np.asarray(ids, object)
        except (ValueError, TypeError, OverflowError) as error:
            raise TokensInvalid(reason=str(error)) from error
        if array.ndim != 1:
            raise TokensInvalid(reason=f"found {array.ndim} dimensions")
        if array.size == 0:
            return np.zeros(0, np.int32)
        if array.dtype.kind not in "iuO":
            raise TokensInvalid(reason=f"found elements of type {array.dtype}")
        if array.dtype.kind == "O" and not all(type(v) is int or isinstance(v, np.integer) for v in array):
            raise TokensInvalid(reason="found elements that are no integers")
        outside = np.flatnonzero((array < 0) | (array >= self.vocab_size))
        if outside.size:
            position = int(outside[0])
            raise TokenOutOfRange(token=int(array[position]), position=position, last=self.vocab_size - 1)
        return array.astype(np.int32)

    def step(
        self,
        tokens: ArrayLike,
        positions: ArrayLike,
        sequence: ArrayLike,
        pages: Many[ArrayLike],
        rows: ArrayLike,
        entry: str | None = None,
        hidden: ArrayLike | None = None,
    ) -> StepOutput:
        """One step: token t stands at `positions[t]` of the sequence whose pages are `pages[sequence[t]]`.

        rows: the tokens whose logits are wanted. hidden [T, D]: the extra input of an entry such as `mtp`.
        Raises StepInvalid for anything out of bounds, before the device sees it.
        """
        given = _Given(
            tokens=self.tokens(tokens),
            positions=_ints("positions", positions),
            sequence=_ints("sequence", sequence),
            pages=[_ints("pages", table) for table in _listed("pages", pages)],
            rows=_ints("rows", rows),
        )
        self._require_usable()
        self._check_given(given)
        longest = max(1, int(np.bincount(given.sequence).max()))
        context = int(given.positions.max()) + 1
        name = self.entry_for(longest, given.tokens.size, context) if entry is None else entry
        states = None if hidden is None else floats("hidden", hidden)
        self._check_entry(name, given.tokens.size, states)
        self._feed.fill(*given)
        return self._execute(name, hidden=states)

    def chunks(self, requests: Many[Request]) -> Iterator[Chunk]:
        """Run requests of unequal length together, in steps as large as the plan allows.

        Pages of all requests are reserved, and shared ones copied, before the first step: OutOfPages leaves every
        sequence as it was. If a step fails or the caller stops early, sequences roll back to their former length.
        """
        self._reserve(requests)
        before = [request.sequence.length for request in requests]
        done = [0] * len(requests)
        try:
            while pieces := self._next_step(requests, done):
                yield from self._run_pieces(requests, pieces)
                for piece in pieces:
                    done[piece.request] += piece.size
        except BaseException:
            for request, length in zip(requests, before, strict=True):
                request.sequence.truncate(length)
            raise

    def reserve(self, sequence: Sequence, length: int) -> None:
        """Make positions up to `length` writable: pages are taken, a shared one is copied. Raises as
        `Sequence.reserve` does, which changes nothing then."""
        size = self.plan.page_size
        for source, target in sequence.reserve(length):
            self.device.copy_slots(source * size, target * size, size)

    def run(self, requests: Many[Request]) -> list[Floats]:
        """As `chunks`; returns a copy of the wanted logits of each request: [0 or 1 or number of tokens, V]."""
        found: list[list[Floats]] = [[] for _ in _listed("requests", requests)]
        for chunk in self.chunks(requests):
            found[chunk.request].append(chunk.logits.copy())
        empty = np.zeros((0, self.vocab_size), np.float32)
        return [parts[0] if len(parts) == 1 else np.concatenate([empty, *parts]) for parts in found]

    @cached_property
    def can_draw(self) -> bool:
        """Whether the plan has entries that end with tokens."""
        kinds = ("decode", "prefill", f"{SHORT}decode", f"{SHORT}prefill")
        names = [name for name in kinds if name in self.plan.entries]
        return all(f"{name}.{form}" in self.plan.entries for name in names for form in FORMS)

    def draw(self, requests: Many[Request]) -> list[list[int]]:
        """As `chunks`, for requests that all have draws; what the device drew for each row, for `Sampler.token`."""
        found: list[list[int]] = [[] for _ in _listed("requests", requests)]
        for chunk in self.chunks(requests):
            if chunk.drawn is not None:
                found[chunk.request] += chunk.drawn.tolist()
        return found

    def _reserve(self, requests: Many[Request]) -> None:
        for request in _listed("requests", requests):
            self._check_request(request)
        sequences = [request.sequence for request in requests]
        if len({id(sequence) for sequence in sequences}) != len(sequences):
            raise StepInvalid(where="requests", reason="two of them append to the same sequence")
        if any(sequence.pool is not self.pool for sequence in sequences):
            raise PageMisuse(page="-", reason="the sequence belongs to another session")
        self._require_usable()
        lengths = [request.sequence.length + request.tokens.size for request in requests]
        short = [(each, length) for each, length in zip(sequences, lengths, strict=True) if not each.holds(length)]
        self.pool.require(sum(sequence.pages_needed(length) for sequence, length in short))
        for index, (sequence, length) in enumerate(short):
            try:
                self.reserve(sequence, length)
            except BaseException:
                for earlier, _ in short[:index]:
                    earlier.truncate(earlier.length)
                raise

    def _next_step(self, requests: Many[Request], done: list[int]) -> list[_Piece]:
        """The pieces of the next step: requests in order, as long as tokens, rows and sequences fit."""
        bounds = self.plan.bounds
        left = [request.tokens.size - count for request, count in zip(requests, done, strict=True)]
        if not any(left):
            return []
        longest, total = min(max(left), bounds.T), min(sum(left), bounds.T)
        context = max(
            request.sequence.length + min(count, bounds.T) for request, count in zip(requests, left, strict=True)
        )
        room = self.plan.entries[self.entry_for(longest, total, context)].max_tokens
        rows, pieces = bounds.R, list[_Piece]()
        for index, request in enumerate(requests):
            count = min(left[index], room)
            if request.want == "all":
                count = min(count, rows)
            wanted = count if request.want == "all" else int(request.want == "last" and count == left[index] > 0)
            if wanted > rows:  # no row left for the last token: it goes into the next step
                count, wanted = count - 1, 0
            if count == 0 or len(pieces) == bounds.S:
                continue
            pieces.append(_Piece(index, done[index], count, wanted))
            room, rows = room - count, rows - wanted
        return pieces

    def _run_pieces(self, requests: Many[Request], pieces: list[_Piece]) -> Iterator[Chunk]:
        feed, draws, longest, context, experts = self._feed, list[Draw](), 0, 0, False
        feed.clear()
        for piece in pieces:
            request, stop = requests[piece.request], piece.start + piece.size
            sequence = request.sequence
            feed.append(request.tokens[piece.start : stop], sequence.length, sequence.pages, piece.rows)
            if request.draws:
                first = piece.start if request.want == "all" else 0
                draws += request.draws[first : first + piece.rows]
            longest, context = max(longest, piece.size), max(context, sequence.length + piece.size)
            experts = experts or request.experts
        entry = self._drawing(self.entry_for(longest, feed.tokens, context), requests)
        output = self._execute(entry, draws, experts=experts)
        # All lengths before the first yield: the tokens are in the cache whatever the caller does next.
        for piece in pieces:
            requests[piece.request].sequence.length += piece.size
        total, token, row = feed.tokens, 0, 0
        for piece in pieces:
            hidden = None if output.hidden is None else output.hidden[token : token + piece.size]
            drawn = None if output.drawn is None else output.drawn[row : row + piece.rows]
            logits, span = output.logits[row : row + piece.rows], slice(token, token + piece.size)
            visited = _part(output.experts, span, total) if requests[piece.request].experts else None
            yield Chunk(piece.request, piece.start, piece.size, logits, hidden, drawn, visited)
            token, row = token + piece.size, row + piece.rows

    def entry_for(self, longest: int, tokens: int, context: int) -> str:
        """For a step of so many tokens, of which `longest` are of one sequence, none behind more than `context` with
        itself: what `prefill` does once for each sequence, to rebuild its keys and values, is paid for by the tokens of
        that sequence."""
        decode, prefill = (self._in_context(name, tokens, context) for name in ("decode", "prefill"))
        if decode is None or prefill is None:
            only = decode or prefill
            assert only is not None, "a plan has one of both"
            return only.name
        pays_from = self.device.prefill_min_tokens or prefill.min_tokens
        return decode.name if longest < pays_from and tokens <= decode.max_tokens else prefill.name

    def _in_context(self, name: str, tokens: int, context: int) -> Entry | None:
        """That entry, or the one of its kind for short contexts where those are."""
        short = self.plan.entries.get(SHORT + name)
        if short is not None and context <= short.max_context and tokens <= short.max_tokens:
            return short
        return self.plan.entries.get(name)

    def _drawing(self, entry: str, requests: Many[Request]) -> str:
        """The entry that draws for these requests, itself if none has a draw."""
        draws = [draw for request in requests for draw in request.draws]
        if not draws:
            return entry
        if any(len(request.draws) != request.rows for request in requests):
            raise StepInvalid(where="requests", reason="some rows of logits have a draw, others do not")
        return f"{entry}.{max((draw.form for draw in draws), key=FORMS.index)}"

    def _execute(
        self, entry: str, draws: Many[Draw] = (), hidden: Floats | None = None, experts: bool = False
    ) -> StepOutput:
        """Run an entry on what was fed. experts: whether somebody wants to know those of its tokens."""
        count, rows = self._feed.tokens, self._feed.rows
        outputs = self.plan.entries[entry].outputs
        self._feed.finish(draws)
        if hidden is not None:
            name = self.plan.buffers[self.plan.entries[entry].inputs["hidden"]].name
            self.device.inputs[name][: hidden.size] = hidden.reshape(-1)
        with self.turns:
            self.device.run(entry)
            chosen = self._experts(entry, experts)
        if "token" in outputs:
            drawn = self.device.output(entry, "token")[:rows]
            return StepOutput(np.zeros((0, self.vocab_size), np.float32), None, drawn, chosen)
        logits = self.device.output(entry, "logits")[: rows * self.vocab_size].reshape(rows, self.vocab_size)
        if "hidden" not in outputs:
            return StepOutput(logits, None, None, chosen)
        states = self.device.output(entry, "hidden")
        width = states.size // self.plan.bounds.T
        return StepOutput(logits, states[: count * width].reshape(count, width), None, chosen)

    def _experts(self, entry: str, wanted: bool) -> Mapping[int, Ints] | None:
        """What the tokens of the step visited, for those who count; the device is not asked for nobody."""
        if not self.expert_stats and not wanted:
            return None
        chosen = self.device.experts(entry)
        for stats in self.expert_stats:
            stats.add_step(chosen)
        return chosen

    @property
    def usable(self) -> bool:
        """Whether this process may use the device: not in a forked child, unless the device bears that."""
        return not self.turns.forked or self.device.forks

    def _require_usable(self) -> None:
        if self.closed:
            raise ModelClosed()
        if not self.usable:
            raise Forked(device=type(self.device).__name__)

    def _check_request(self, request: Request) -> None:
        if not isinstance(request, Request) or not isinstance(request.sequence, Sequence):
            raise StepInvalid(where="requests", reason="must be requests, each with a sequence")
        tokens = request.tokens
        if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype != np.int32:
            raise StepInvalid(where="requests", reason="tokens must be as `Session.tokens` gives them")
        if not self._known(tokens):
            self.tokens(tokens)  # says which
        if not isinstance(request.want, str) or request.want not in _WANTS:
            raise StepInvalid(where="requests", reason=f"`want` must be one of {', '.join(_WANTS)}")
        if not isinstance(request.draws, tuple) or not all(isinstance(draw, Draw) for draw in request.draws):
            raise StepInvalid(where="requests", reason="`draws` must be a tuple of Draw")

    def _known(self, tokens: Ints) -> bool:
        """Whether all are ids of the vocabulary."""
        if tokens.size == 1:  # of most steps: not worth two reductions
            return 0 <= tokens.item() < self.vocab_size
        return not tokens.size or 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size

    def _check_given(self, given: _Given) -> None:
        bounds, count = self.plan.bounds, given.tokens.size
        _within("tokens", count, 1, bounds.T)
        _within("rows", given.rows.size, 0, bounds.R)
        _within("pages", len(given.pages), 1, bounds.S)
        for name, array in (("positions", given.positions), ("sequence", given.sequence)):
            if array.size != count:
                raise StepInvalid(where=name, reason=f"has {array.size} elements for {count} tokens")
        _all_within("positions", given.positions, self.plan.context)
        _all_within("sequence", given.sequence, len(given.pages))
        _all_within("rows", given.rows, count)
        for index, table in enumerate(given.pages):
            _within(f"pages[{index}]", table.size, 0, bounds.P)
            _all_within(f"pages[{index}]", table, self.pool.pages)
            used = given.positions[given.sequence == index]
            if used.size and int(used.max()) >= table.size * self.plan.page_size:
                raise StepInvalid(where=f"pages[{index}]", reason=f"has no page for position {int(used.max())}")

    def _check_entry(self, name: str, tokens: int, hidden: Floats | None) -> None:
        entry = self.plan.entries.get(name) if isinstance(name, str) else None
        if entry is None:
            raise UnknownEntry(name=name, known=", ".join(self.plan.entries))
        _within("tokens", tokens, 1, entry.max_tokens)
        if (hidden is None) != ("hidden" not in entry.inputs):
            verb = "needs" if hidden is None else "does not take"
            raise StepInvalid(where="hidden", reason=f"entry {name} {verb} it")
        if hidden is None:
            return
        width = self.plan.buffers[entry.inputs["hidden"]].size // self.plan.bounds.T
        if hidden.shape != (tokens, width):
            raise StepInvalid(where="hidden", reason=f"has the shape {hidden.shape}, not ({tokens}, {width})")


def _part(experts: Mapping[int, Ints] | None, span: slice, total: int) -> Mapping[int, Ints]:
    """Of the tokens of a request, of those of a step that has `total`."""
    return {layer: ids.reshape(total, -1)[span].reshape(-1) for layer, ids in (experts or {}).items()}


def floats(name: str, values: ArrayLike) -> Floats:
    """Real numbers as a contiguous f32 array. Raises StepInvalid."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise StepInvalid(where=name, reason=str(error)) from error
    if array.dtype.kind not in "fiu":
        raise StepInvalid(where=name, reason=f"must be real numbers, found elements of type {array.dtype}")
    return np.ascontiguousarray(array, np.float32)


def _listed(name: str, values: Many[Any]) -> Many[Any]:
    array = isinstance(values, np.ndarray) and values.ndim > 0
    if not array and (not isinstance(values, Many) or isinstance(values, str | bytes)):
        raise StepInvalid(where=name, reason=f"must be a list, not {type(values).__name__}")
    return values


def _ints(name: str, values: ArrayLike) -> Ints:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise StepInvalid(where=name, reason=str(error)) from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise StepInvalid(where=name, reason="must be a flat sequence of integers")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**31):
        raise StepInvalid(where=name, reason="has an element that is negative or does not fit 32 bits")
    return array.astype(np.int32)


def _within(name: str, count: int, low: int, high: int) -> None:
    if not low <= count <= high:
        raise StepInvalid(where=name, reason=f"has {count} elements, it must have {low} to {high}")


def _all_within(name: str, array: Ints, end: int) -> None:
    if array.size and int(array.max()) >= end:
        raise StepInvalid(where=name, reason=f"has the element {int(array.max())}, it must be below {end}")
