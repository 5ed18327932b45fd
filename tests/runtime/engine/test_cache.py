"""Pages: no page has two writers, none is lost, and the counts say who refers to what."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dsv3c.runtime import errors
from dsv3c.runtime.engine.cache import PagePool, Sequence

PAGES, PAGE_SIZE, MAX_PAGES = 12, 4, 8


def test_pages_go_around() -> None:
    pool = PagePool(2, PAGE_SIZE)
    first, second = pool.allocate(), pool.allocate()
    assert {first, second} == {0, 1}
    with pytest.raises(errors.OutOfPages, match="0 free pages of 4 tokens"):
        pool.allocate()
    pool.release(first)
    assert pool.allocate() == first


def test_writable_copies_only_a_shared_page() -> None:
    pool = PagePool(3, PAGE_SIZE)
    page = pool.allocate()
    assert pool.writable(page) == page
    pool.share(page)
    fresh = pool.writable(page)
    assert fresh != page
    assert (pool.references(page), pool.references(fresh)) == (1, 1)


@pytest.mark.parametrize("page", [-1, 3, 0])
def test_misuse_of_a_page(page: int) -> None:
    pool = PagePool(3, PAGE_SIZE)
    for use in (pool.share, pool.release, pool.writable):
        with pytest.raises(errors.PageMisuse):
            use(page)


def test_reserve_changes_nothing_when_it_fails() -> None:
    pool = PagePool(3, PAGE_SIZE)
    sequence = Sequence(pool, MAX_PAGES)
    sequence.reserve(6)
    with pytest.raises(errors.OutOfPages):
        sequence.reserve(17)
    assert sequence.pages.size == 2
    assert pool.free_pages == 1
    with pytest.raises(errors.ContextOverflow):
        sequence.reserve(MAX_PAGES * PAGE_SIZE + 1)


def test_a_shared_page_is_copied_where_more_is_reserved_behind_it() -> None:
    pool = PagePool(6, PAGE_SIZE)
    sequence = Sequence(pool, MAX_PAGES)
    sequence.reserve(2 * PAGE_SIZE)
    sequence.length = 3
    shared, behind = sequence.pages.tolist()
    sequence.fork()
    assert sequence.pages_needed(4) == 1
    ((source, target),) = sequence.reserve(4)
    assert source == shared
    assert sequence.pages.tolist() == [target, behind]


@pytest.mark.parametrize("length", [-1, 5])
def test_roll_back_and_fork_only_to_what_is_there(length: int) -> None:
    sequence = Sequence(PagePool(3, PAGE_SIZE), MAX_PAGES)
    sequence.reserve(4)
    sequence.length = 4
    with pytest.raises(errors.PageMisuse):
        sequence.truncate(length)
    with pytest.raises(errors.PageMisuse):
        sequence.fork(length)


class Cache(RuleBasedStateMachine):
    """Sequences against a model in which each has its own list of rows."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, PAGE_SIZE)
        self.rows: dict[int, int] = {}  # slot: what was last written there
        self.live: dict[int, tuple[Sequence, list[int]]] = {}
        self.written = 0

    @rule(target=sequences)
    def start(self) -> Sequence:
        sequence = Sequence(self.pool, MAX_PAGES)
        self.live[id(sequence)] = (sequence, [])
        return sequence

    @rule(sequence=sequences, count=st.integers(1, 11))
    def append(self, sequence: Sequence, count: int) -> None:
        before = (sequence.pages.tolist(), self.pool.free_pages)
        try:
            copies = sequence.reserve(sequence.length + count)
        except (errors.OutOfPages, errors.ContextOverflow):
            assert (sequence.pages.tolist(), self.pool.free_pages) == before
            return
        for source, target in copies:
            for offset in range(PAGE_SIZE):
                self.rows[target * PAGE_SIZE + offset] = self.rows.get(source * PAGE_SIZE + offset, -1)
        for position in range(sequence.length, sequence.length + count):
            page = int(sequence.pages[position // PAGE_SIZE])
            assert self.pool.references(page) == 1, "a shared page is written"
            self.written += 1
            self.rows[page * PAGE_SIZE + position % PAGE_SIZE] = self.written
            self.live[id(sequence)][1].append(self.written)
        sequence.length += count

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

    @invariant()
    def every_sequence_reads_what_it_wrote(self) -> None:
        for sequence, rows in self.live.values():
            slots = [int(sequence.pages[p // PAGE_SIZE]) * PAGE_SIZE + p % PAGE_SIZE for p in range(sequence.length)]
            assert [self.rows[slot] for slot in slots] == rows

    @invariant()
    def references_are_those_of_the_sequences(self) -> None:
        held = Counter(int(page) for sequence, _ in self.live.values() for page in sequence.pages)
        assert {page: self.pool.references(page) for page in range(PAGES)} == {p: held[p] for p in range(PAGES)}
        assert self.pool.free_pages == PAGES - len(held)


Cache.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCache = Cache.TestCase
