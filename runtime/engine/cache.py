"""Pages of the caches: reference-counted, shared between sequences, copied before a shared one is written.

The pool hands out page numbers only; the rows behind them live on the device. A page is the same number in all caches,
each of which has as many rows for it, of its own width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.errors import ContextOverflow, OutOfPages, PageMisuse

Copy = tuple[int, int]  # rows of the first page are to be copied to the second


class PagePool:
    """`pages` pages of `page_size` tokens. A page is free, or has one or more references."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))

    @property
    def pages(self) -> int:
        return len(self._references)

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def references(self, page: int) -> int:
        return self._references[_page(page, len(self._references))]

    def require(self, pages: int) -> None:
        """Raises OutOfPages unless that many pages are free."""
        if _length(pages) > len(self._free):
            raise OutOfPages(free=len(self._free), page_size=self.page_size, wanted=pages)

    def allocate(self) -> int:
        """A free page, with one reference. Raises OutOfPages."""
        self.require(1)
        page = self._free.pop()
        self._references[page] = 1
        return page

    def share(self, page: int) -> int:
        """Add a reference to a page in use."""
        self._require_used(page)
        self._references[page] += 1
        return page

    def release(self, page: int) -> None:
        """Drop a reference; the page is free when none is left."""
        self._require_used(page)
        self._references[page] -= 1
        if self._references[page] == 0:
            self._free.append(page)

    def writable(self, page: int) -> int:
        """A page with the same meaning that only the caller refers to: `page` itself, or a fresh one when it is
        shared. The caller's reference moves along; it must copy the rows before it writes. Raises OutOfPages."""
        self._require_used(page)
        if self._references[page] == 1:
            return page
        fresh = self.allocate()
        self._references[page] -= 1
        return fresh

    def _require_used(self, page: int) -> None:
        if self._references[_page(page, len(self._references))] == 0:
            raise PageMisuse(page=page, reason="is free")


class Sequence:
    """One sequence's cache: `length` tokens in `pages`, at most `max_pages` pages long.

    Used by one thread at a time. `close` gives the pages back; a closed sequence is empty and may be used again.
    """

    def __init__(self, pool: PagePool, max_pages: int) -> None:
        self.pool = pool
        self.length = 0
        self._table = np.zeros(max_pages, np.int32)
        self._count = 0

    @property
    def pages(self) -> NDArray[np.int32]:
        """Page numbers in the order of the positions they hold (a view)."""
        return self._table[: self._count]

    @property
    def capacity(self) -> int:
        return self._table.size * self.pool.page_size

    def pages_needed(self, length: int) -> int:
        """Free pages that `reserve(length)` takes."""
        return max(0, self._pages_of(_length(length)) - self._count) + self._must_copy(length)

    def reserve(self, length: int) -> list[Copy]:
        """Make positions [self.length, length) writable. Returns the page copies to do before the first write.

        Raises ContextOverflow or OutOfPages and then changes nothing.
        """
        if _length(length) > self.capacity:
            raise ContextOverflow(tokens=length, context=self.capacity, largest=self.capacity)
        self.pool.require(self.pages_needed(length))
        copies = []
        if self._must_copy(length):
            last = int(self._table[self._count - 1])
            self._table[self._count - 1] = fresh = self.pool.writable(last)
            copies.append((last, fresh))
        while self._count < self._pages_of(length):
            self._table[self._count] = self.pool.allocate()
            self._count += 1
        return copies

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on (roll back); pages no longer needed are given back."""
        if not 0 <= _length(length) <= self.length:
            raise PageMisuse(page="-", reason=f"cannot roll back from {self.length} tokens to {length}")
        self.length = length
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
        return other

    def close(self) -> None:
        self.truncate(0)

    def _pages_of(self, length: int) -> int:
        return -(-length // self.pool.page_size)

    def _must_copy(self, length: int) -> int:
        # Only the last page is ever written again: `truncate` leaves no page behind it.
        partial = self.length % self.pool.page_size
        shared = bool(partial) and self.pool.references(int(self._table[self._count - 1])) > 1
        return int(shared and length > self.length)


def _page(page: int, pages: int) -> int:
    if not isinstance(page, int | np.integer) or not 0 <= page < pages:
        raise PageMisuse(page=page, reason=f"is not in 0..{pages - 1}")
    return int(page)


def _length(length: int) -> int:
    if not isinstance(length, int | np.integer):
        raise PageMisuse(page="-", reason=f"a number of tokens or pages is {type(length).__name__}, not an integer")
    return int(length)
