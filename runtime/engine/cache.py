"""Pages of the caches: reference-counted, shared between sequences, copied before a shared one is written.

The pool hands out page numbers only; the rows behind them live on the device. A page is the same number in all caches,
each of which has as many rows for it, of its own width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.errors import ContextOverflow, OutOfPages, PageMisuse

Copy = tuple[int, int]  # rows of the first page are to be copied to the second


class PagePool:
    """`pages` pages of `page_size` tokens. A page is free, or has one or more references.

    One of them may be that of a keeper, who wants the page for its content. A page that only its keeper refers to is
    idle: it counts as free, and is taken when none is left that is really so, the one that became idle first before
    the others. `taken` is called with it then: the keeper's reference is gone.
    """

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.taken: Callable[[int], None] = _nobody
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._kept: set[int] = set()
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def pages(self) -> int:
        return len(self._references)

    @property
    def free_pages(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def idle_pages(self) -> int:
        return len(self._idle)

    @property
    def idle(self) -> tuple[int, ...]:
        """Idle pages, the one that is taken first at the front."""
        return tuple(self._idle)

    def references(self, page: int) -> int:
        return self._references[_page(page, len(self._references))]

    def require(self, pages: int) -> None:
        """Raises OutOfPages unless that many pages are free."""
        if _length(pages) > self.free_pages:
            raise OutOfPages(free=self.free_pages, page_size=self.page_size, wanted=pages)

    def allocate(self) -> int:
        """A free page, with one reference. Raises OutOfPages."""
        self.require(1)
        page = self._free.pop() if self._free else self._take_idle()
        self._references[page] = 1
        return page

    def share(self, page: int) -> int:
        """Add a reference to a page in use."""
        self._require_used(page)
        self._references[page] += 1
        self._idle.pop(page, None)
        return page

    def release(self, page: int) -> None:
        """Drop a reference; the page is free when none is left."""
        self._require_used(page)
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)
        elif self._references[page] == 1 and page in self._kept:
            self._idle[page] = None

    def keep(self, page: int) -> None:
        """Add the keeper's reference to a page in use."""
        if page in self._kept:
            raise PageMisuse(page=page, reason="is kept already")
        self.share(page)
        self._kept.add(page)

    def drop(self, page: int) -> None:
        """Drop the keeper's reference."""
        if page not in self._kept:
            raise PageMisuse(page=page, reason="is not kept")
        self._kept.remove(page)
        self._idle.pop(page, None)
        self.release(page)

    def writable(self, page: int) -> int:
        """A page with the same meaning that only the caller refers to: `page` itself, or a fresh one when it is
        shared. The caller's reference moves along; it must copy the rows before it writes. Raises OutOfPages."""
        self._require_used(page)
        if self._references[page] == 1:
            return page
        fresh = self.allocate()
        self.release(page)
        return fresh

    def _take_idle(self) -> int:
        page, _ = self._idle.popitem(last=False)
        self._kept.remove(page)
        self._references[page] = 0
        self.taken(page)
        return page

    def _require_used(self, page: int) -> None:
        if self._references[_page(page, len(self._references))] == 0:
            raise PageMisuse(page=page, reason="is free")


class Sequence:
    """One sequence's cache: `length` tokens in `pages`, at most `max_pages` pages long.

    keys: of its first full pages, what they are known by where pages are shared by content (`PrefixCache`); they go
    with the tokens they stand for. Used by one thread at a time. `close` gives the pages back; a closed sequence is
    empty and may be used again.
    """

    def __init__(self, pool: PagePool, max_pages: int) -> None:
        self.pool = pool
        self.length = 0
        self.keys: list[bytes] = []
        self._table = np.zeros(max_pages, np.int32)
        self._count = 0

    @property
    def pages(self) -> NDArray[np.int32]:
        """Page numbers in the order of the positions they hold (a view)."""
        return self._table[: self._count]

    @property
    def capacity(self) -> int:
        return self._table.size * self.pool.page_size

    def holds(self, length: int) -> bool:
        """Whether positions up to `length` are writable as they are, so that `reserve` has nothing to do."""
        return length <= self._count * self.pool.page_size and not self._must_copy(length)

    def pages_needed(self, length: int) -> int:
        """Free pages that `reserve(length)` takes."""
        return max(0, self._pages_of(_length(length)) - self._count) + self._must_copy(length)

    def reserve(self, length: int) -> list[Copy]:
        """Make positions [self.length, length) writable. Returns the page copies to do before the first write.

        Raises ContextOverflow or OutOfPages and then changes nothing.
        """
        if self.holds(_length(length)):
            return []
        if length > self.capacity:
            raise ContextOverflow(tokens=length, context=self.capacity, largest=self.capacity)
        self.pool.require(self.pages_needed(length))
        copies = []
        if self._must_copy(length):
            index = self.length // self.pool.page_size
            shared = int(self._table[index])
            self._table[index] = fresh = self.pool.writable(shared)
            copies.append((shared, fresh))
        while self._count < self._pages_of(length):
            self._table[self._count] = self.pool.allocate()
            self._count += 1
        return copies

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on (roll back); pages no longer needed are given back."""
        if not 0 <= _length(length) <= self.length:
            raise PageMisuse(page="-", reason=f"cannot roll back from {self.length} tokens to {length}")
        self.length = length
        del self.keys[length // self.pool.page_size :]
        # From the end on: of idle pages those that others build on are taken last.
        while self._count > self._pages_of(length):
            self._count -= 1
            self.pool.release(int(self._table[self._count]))

    def fork(self, length: int | None = None) -> Sequence:
        """A new sequence that shares the pages of the first `length` tokens (all by default)."""
        length = self.length if length is None else length
        if not 0 <= _length(length) <= self.length:
            raise PageMisuse(page="-", reason=f"cannot fork {length} of {self.length} tokens")
        other = Sequence(self.pool, self._table.size)
        other.length = length
        other._count = self._pages_of(length)
        for i in range(other._count):
            other._table[i] = self.pool.share(int(self._table[i]))
        other.keys = self.keys[: length // self.pool.page_size]
        return other

    def adopt(self, pages: Many[int], keys: Many[bytes]) -> None:
        """An empty sequence takes full pages that are in use, with their keys, as its first tokens."""
        if self._count or len(pages) > self._table.size:
            reason = f"cannot be taken by a sequence that holds {self._count} pages of at most {self._table.size}"
            raise PageMisuse(page="-", reason=reason)
        for page in pages:
            self._table[self._count] = self.pool.share(page)
            self._count += 1
        self.length = len(pages) * self.pool.page_size
        self.keys = list(keys)

    def replace(self, index: int, page: int) -> None:
        """Let page `index` of the sequence be `page`, which is in use and holds the same rows."""
        former = int(self._table[index])
        self._table[index] = self.pool.share(page)
        self.pool.release(former)

    def close(self) -> None:
        self.truncate(0)

    def _pages_of(self, length: int) -> int:
        return -(-length // self.pool.page_size)

    def _must_copy(self, length: int) -> int:
        # Only the page of the next position is ever written again, and only when it holds tokens. What is reserved
        # behind it is the sequence's own.
        index, partial = divmod(self.length, self.pool.page_size)
        if not partial or length <= self.length:
            return 0
        return int(self.pool.references(self._table.item(index)) > 1)


def _nobody(page: int) -> None:
    """What a pool without a keeper tells: it has no idle pages."""


def _page(page: int, pages: int) -> int:
    if not isinstance(page, int | np.integer) or not 0 <= page < pages:
        raise PageMisuse(page=page, reason=f"is not in 0..{pages - 1}")
    return int(page)


def _length(length: int) -> int:
    if not isinstance(length, int | np.integer):
        raise PageMisuse(page="-", reason=f"a number of tokens or pages is {type(length).__name__}, not an integer")
    return int(length)
