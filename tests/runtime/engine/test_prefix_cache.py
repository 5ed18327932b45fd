"""Shared prefixes: a sequence reads its own tokens, no page is lost, none has two writers, none outlives its parent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from numpy.typing import NDArray

from dsv3c.runtime import errors
from dsv3c.runtime.engine.cache import PagePool, Sequence
from dsv3c.runtime.engine.prefix_cache import PrefixCache
from dsv3c.runtime.engine.session import Request, Session
from tests.runtime import toy

PAGES, PAGE_SIZE, MAX_PAGES = 10, 2, 6


def ints(*tokens: int) -> NDArray[np.int32]:
    return np.array(tokens, np.int32)


def filled(cache: PrefixCache, pool: PagePool, *tokens: int) -> Sequence:
    """A sequence that has read `tokens`, with what it could take from the cache, and whose pages are cached."""
    sequence = Sequence(pool, MAX_PAGES)
    cache.match(sequence, ints(*tokens))
    sequence.reserve(len(tokens))
    sequence.length = len(tokens)
    cache.insert(sequence, ints(*tokens))
    return sequence


@pytest.fixture
def pool() -> PagePool:
    return PagePool(PAGES, PAGE_SIZE)


@pytest.fixture
def cache(pool: PagePool) -> PrefixCache:
    return PrefixCache(pool)


def test_a_prefix_is_found_after_its_sequence_is_gone(pool: PagePool, cache: PrefixCache) -> None:
    first = filled(cache, pool, 1, 2, 3, 4, 5)
    pages = first.pages.tolist()
    first.close()
    assert (pool.free_pages, pool.idle_pages, cache.cached_pages) == (PAGES, 2, 2)
    second = Sequence(pool, MAX_PAGES)
    assert cache.match(second, ints(1, 2, 3, 4, 9, 9)) == 4
    assert (second.length, second.pages.tolist()) == (4, pages[:2])
    assert pool.free_pages == PAGES - 2


@pytest.mark.parametrize(
    ("tokens", "length"),
    [((1, 2, 3, 4), 2), ((1, 2, 3, 4, 5), 4), ((1, 2, 9, 4, 5), 2), ((9, 2, 3, 4, 5), 0), ((3, 4, 1), 0), ((), 0)],
)
def test_what_is_alike_from_the_beginning_is_shared_but_the_last_token(
    pool: PagePool, cache: PrefixCache, tokens: tuple[int, ...], length: int
) -> None:
    filled(cache, pool, 1, 2, 3, 4, 5)
    assert cache.match(Sequence(pool, MAX_PAGES), ints(*tokens)) == length


def test_a_page_is_known_by_all_before_it(pool: PagePool, cache: PrefixCache) -> None:
    filled(cache, pool, 1, 2, 3, 4)
    filled(cache, pool, 5, 6, 3, 4)
    assert cache.cached_pages == 4


def test_of_two_that_read_the_same_at_once_one_gives_its_pages_back(pool: PagePool, cache: PrefixCache) -> None:
    both = [Sequence(pool, MAX_PAGES) for _ in range(2)]
    for sequence in both:
        assert cache.match(sequence, ints(1, 2, 3, 4, 5)) == 0
        sequence.reserve(5)
        sequence.length = 5
    for sequence in both:
        cache.insert(sequence, ints(1, 2, 3, 4, 5))
    assert both[0].pages[:2].tolist() == both[1].pages[:2].tolist()
    assert both[0].pages[2] != both[1].pages[2]
    assert pool.free_pages == PAGES - 4


def test_a_sequence_of_few_pages_takes_no_more_than_it_holds(pool: PagePool, cache: PrefixCache) -> None:
    filled(cache, pool, 1, 2, 3, 4, 5)
    assert cache.match(Sequence(pool, 1), ints(1, 2, 3, 4, 5)) == 2


def test_a_cached_page_is_copied_before_it_is_written_again(pool: PagePool, cache: PrefixCache) -> None:
    sequence = filled(cache, pool, 1, 2, 3, 4)
    cached = int(sequence.pages[1])
    sequence.truncate(3)
    assert sequence.pages_needed(4) == 1
    ((source, target),) = sequence.reserve(4)
    assert (source, int(sequence.pages[1])) == (cached, target)
    assert target != cached
    sequence.length = 4
    cache.insert(sequence, ints(1, 2, 3, 7))
    assert cache.match(Sequence(pool, MAX_PAGES), ints(1, 2, 3, 4, 5)) == 4
    assert cache.match(Sequence(pool, MAX_PAGES), ints(1, 2, 3, 7, 5)) == 4


def test_what_was_not_used_for_longest_goes_first_and_ends_before_beginnings(
    pool: PagePool, cache: PrefixCache
) -> None:
    first, second = filled(cache, pool, 1, 2, 3, 4), filled(cache, pool, 5, 6, 7, 8)
    beginning, end, *other = *first.pages.tolist(), *second.pages.tolist()
    first.close()
    second.close()
    filled(cache, pool, 1, 2, 9).close()
    taken, forget = list[int](), pool.taken
    pool.taken = lambda page: (taken.append(page), forget(page))[1]
    Sequence(pool, PAGES).reserve(PAGES * PAGE_SIZE)
    assert taken == [end, *reversed(other), beginning]
    assert cache.cached_pages == 0


def test_clear_gives_back_what_nobody_uses_and_a_sequence_can_be_cached_again(
    pool: PagePool, cache: PrefixCache
) -> None:
    filled(cache, pool, 1, 2, 3, 4).close()
    sequence = filled(cache, pool, 1, 2, 5, 6)
    cache.clear()
    assert (pool.free_pages, pool.idle_pages, cache.cached_pages) == (PAGES - 2, 0, 0)
    cache.insert(sequence, ints(1, 2, 5, 6))
    assert cache.cached_pages == 2
    assert cache.match(Sequence(pool, MAX_PAGES), ints(1, 2, 5, 6, 7)) == 4


@pytest.mark.parametrize("shorter", [lambda s: s.truncate(2) or s, lambda s: s.fork(2)], ids=["rolled back", "forked"])
def test_a_shorter_sequence_is_cached_anew_from_where_it_ends(
    pool: PagePool, cache: PrefixCache, shorter: Callable[[Sequence], Sequence]
) -> None:
    sequence = shorter(filled(cache, pool, 1, 2, 3, 4))
    cache.insert(sequence, ints(1, 2))
    assert cache.cached_pages == 2
    sequence.reserve(4)
    sequence.length = 4
    cache.insert(sequence, ints(1, 2, 5, 6))
    assert cache.cached_pages == 3
    assert cache.match(Sequence(pool, MAX_PAGES), ints(1, 2, 5, 6, 7)) == 4


def test_what_a_fork_holds_longer_than_what_it_continues_stands_behind_that(pool: PagePool, cache: PrefixCache) -> None:
    first, second = Sequence(pool, MAX_PAGES), Sequence(pool, MAX_PAGES)
    for sequence, length in ((first, 4), (second, 2)):
        sequence.reserve(length)
        sequence.length = length
    fork = first.fork(3)
    cache.insert(second, ints(1, 2))
    cache.insert(first, ints(1, 2, 3, 4))  # takes the other's page for its own first, which the fork keeps
    pages = first.pages.tolist()
    for sequence in (first, second):
        sequence.close()
    assert pool.idle == (pages[0],) and fork.pages[1] == pages[1]
    assert list(cache.by_use().values()) == pages


def test_only_empty_sequences_of_the_pool_take_pages(pool: PagePool, cache: PrefixCache) -> None:
    sequence = filled(cache, pool, 1, 2, 3)
    with pytest.raises(errors.PageMisuse, match="holds 2 pages"):
        cache.match(sequence, ints(1, 2, 3))
    with pytest.raises(errors.PageMisuse, match="another session"):
        cache.match(Sequence(PagePool(1, PAGE_SIZE), 1), ints(1, 2, 3))


def test_a_page_has_one_keeper(pool: PagePool) -> None:
    page = pool.allocate()
    pool.keep(page)
    with pytest.raises(errors.PageMisuse, match="kept already"):
        pool.keep(page)
    pool.drop(page)
    with pytest.raises(errors.PageMisuse, match="not kept"):
        pool.drop(page)


def test_a_prompt_that_was_read_before_takes_one_step_and_gives_the_same_logits(tmp_path: Path) -> None:
    artifact = toy.toy_artifact(tmp_path / "toy")
    device = toy.ToyDevice(artifact.plan, 64)
    session = Session(artifact.plan, device, toy.VOCAB)
    cache = PrefixCache(session.pool)
    prompt = session.tokens([*range(29), 7])
    found = []
    for _ in range(2):
        sequence = session.new_sequence()
        rest = prompt[cache.match(sequence, prompt) :]
        device.steps.clear()
        found.append(session.run([Request(sequence, rest, "last")])[0])
        cache.insert(sequence, prompt)
        sequence.close()
    assert [tokens for _, tokens, _ in device.steps] == [2]
    for logits in found:
        np.testing.assert_array_equal(logits, toy.expected_logits(prompt)[-1:])


class Prefixes(RuleBasedStateMachine):
    """Sequences that share by content. A slot holds all tokens up to its own: what attention would have read."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, PAGE_SIZE)
        self.cache = PrefixCache(self.pool)
        self.slots: NDArray[np.object_] = np.full(PAGES * PAGE_SIZE, None, object)
        self.live: dict[int, tuple[Sequence, list[int]]] = {}

    @rule(target=sequences, tokens=st.lists(st.integers(0, 1), max_size=MAX_PAGES * PAGE_SIZE))
    def start(self, tokens: list[int]) -> Sequence:
        sequence = Sequence(self.pool, MAX_PAGES)
        length = self.cache.match(sequence, ints(*tokens))
        assert length == sequence.length <= max(0, len(tokens) - 1)
        assert length % PAGE_SIZE == 0
        self.live[id(sequence)] = (sequence, tokens[:length])
        self._append(sequence, tokens[length:])
        return sequence

    @rule(sequence=sequences, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def append(self, sequence: Sequence, tokens: list[int]) -> None:
        self._append(sequence, tokens)

    def _append(self, sequence: Sequence, tokens: list[int]) -> None:
        before = (sequence.pages.tolist(), self.pool.free_pages, self.cache.cached_pages)
        try:
            copies = sequence.reserve(sequence.length + len(tokens))
        except (errors.OutOfPages, errors.ContextOverflow):
            assert (sequence.pages.tolist(), self.pool.free_pages, self.cache.cached_pages) == before
            return
        held = self.live[id(sequence)][1]
        for source, target in copies:
            self._rows(target)[:] = self._rows(source)
        for token in tokens:
            page = int(sequence.pages[len(held) // PAGE_SIZE])
            assert self.pool.references(page) == 1, "a shared page is written"
            held.append(token)
            self._rows(page)[(len(held) - 1) % PAGE_SIZE] = tuple(held)
        sequence.length += len(tokens)

    @rule(sequence=sequences, more=st.integers(1, 7))
    def reserve_ahead(self, sequence: Sequence, more: int) -> None:
        try:
            copies = sequence.reserve(sequence.length + more)
        except (errors.OutOfPages, errors.ContextOverflow):
            return
        for source, target in copies:
            self._rows(target)[:] = self._rows(source)

    @rule(sequence=sequences)
    def insert(self, sequence: Sequence) -> None:
        held = ints(*self.live[id(sequence)][1])
        self.cache.insert(sequence, held)
        before = (sequence.pages.tolist(), self.cache.cached_pages)
        self.cache.insert(sequence, held)
        assert (sequence.pages.tolist(), self.cache.cached_pages) == before

    @rule(sequence=sequences, data=st.data())
    def roll_back(self, sequence: Sequence, data: st.DataObject) -> None:
        length = data.draw(st.integers(0, sequence.length))
        sequence.truncate(length)
        del self.live[id(sequence)][1][length:]

    @rule(target=sequences, sequence=sequences, data=st.data())
    def fork(self, sequence: Sequence, data: st.DataObject) -> Sequence:
        length = data.draw(st.integers(0, sequence.length))
        other = sequence.fork(length)
        self.live[id(other)] = (other, self.live[id(sequence)][1][:length])
        return other

    @rule(sequence=consumes(sequences))
    def close(self, sequence: Sequence) -> None:
        sequence.close()
        del self.live[id(sequence)]

    @rule(sequence=consumes(sequences))
    def finish(self, sequence: Sequence) -> None:
        self.insert(sequence)
        self.close(sequence)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        assert self.cache.cached_pages == 0

    def _rows(self, page: int) -> NDArray[np.object_]:
        return self.slots[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for sequence, held in self.live.values():
            rows = [row for page in sequence.pages for row in self._rows(int(page))][: sequence.length]
            assert rows == [tuple(held[: end + 1]) for end in range(len(held))]

    @invariant()
    def references_are_those_of_sequences_and_of_the_cache(self) -> None:
        held = Counter(int(page) for sequence, _ in self.live.values() for page in sequence.pages)
        cached = set(self.cache._pages.values())
        used = {page: held[page] + (page in cached) for page in range(PAGES)}
        assert {page: self.pool.references(page) for page in range(PAGES)} == used
        assert self.pool.idle_pages == sum(page not in held for page in cached)
        assert self.pool.free_pages == PAGES - len(held)

    @invariant()
    def a_cached_page_holds_what_it_is_known_by(self) -> None:
        known = {key: self._rows(page)[-1] for key, page in self.cache._pages.items()}
        assert len(known) == len(set(known.values()))
        assert all(row is not None and len(row) % PAGE_SIZE == 0 for row in known.values())
        parents = {row[:-PAGE_SIZE] for row in known.values()} - {()}
        assert parents <= set(known.values()), "a page went before one that continues it"

    @invariant()
    def what_was_used_last_is_whole_from_its_beginning(self) -> None:
        order = [self._rows(page)[-1] for page in self.cache.by_use().values()]
        assert len(order) == self.cache.cached_pages
        for place, row in enumerate(order):
            assert row[:-PAGE_SIZE] in {(), *order[:place]}


Prefixes.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
TestPrefixes = Prefixes.TestCase
