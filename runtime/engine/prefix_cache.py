"""Prefixes that were computed once: full pages are found by what they hold and shared by all that begin alike.

A page is known by a hash over its tokens and the key of the page before it, hence over all tokens up to its end:
what is cached of a token depends on these alone. Keys are BLAKE2b of 256 bits and relied upon, tokens are not compared:
nobody can make two texts with one key. Pages that no sequence uses stay in the cache until the pool needs them, least
recently used first. A sequence gives its pages back from the end on and holds all before them, so that no page goes
before those that continue it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.engine.cache import PagePool, Sequence
from dsv3c.runtime.errors import PageMisuse

KEY_BYTES = 32
_SALT = b"dsv3c page"


class PrefixCache:
    """Keeps full pages of `pool`, whose keeper it is. Used by one thread at a time, as the pool.

    hits: of the tokens that requests looked up, `lookups`, how many were there.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._before: dict[bytes, bytes] = {}
        self.hits = self.lookups = 0
        pool.taken = self._forget

    @property
    def cached_pages(self) -> int:
        return len(self._pages)

    def match(self, sequence: Sequence, tokens: NDArray[np.int32]) -> int:
        """The empty `sequence` takes the longest cached run of full pages of `tokens`; returns its length.

        One token at least is left over, since its logits are wanted.
        """
        self._require_own(sequence)
        size = self._pool.page_size
        most = min(max(0, tokens.size - 1), sequence.capacity) // size
        pages: list[int] = []
        keys: list[bytes] = []
        key = b""
        for index in range(most):
            key = _key(key, tokens[index * size : (index + 1) * size])
            page = self._pages.get(key)
            if page is None:
                break
            pages.append(page)
            keys.append(key)
        sequence.adopt(pages, keys)
        return sequence.length

    def count(self, tokens: int, found: int) -> None:
        """A request has so many tokens, of which `match` found some."""
        self.lookups += tokens
        self.hits += found

    def insert(self, sequence: Sequence, tokens: NDArray[np.int32]) -> None:
        """Cache the full pages of `sequence` that hold the first of its `tokens`, as far as both go.

        Nothing is written to them later, so all caches must have their rows. Pages that another sequence brought
        before take the place of its own. What is cached already costs nothing: call it whenever a page may be full.
        """
        self._require_own(sequence)
        size, keys = self._pool.page_size, sequence.keys
        if keys and self._pages.get(keys[-1]) != sequence.pages[len(keys) - 1]:
            keys.clear()  # the cache was cleared meanwhile
        for index in range(len(keys), min(tokens.size, sequence.length) // size):
            before = keys[-1] if keys else b""
            key = _key(before, tokens[index * size : (index + 1) * size])
            page = self._pages.get(key)
            if page is None:
                self._add(key, int(sequence.pages[index]), before)
            elif page != sequence.pages[index]:
                sequence.replace(index, page)
            keys.append(key)

    def by_use(self) -> dict[bytes, int]:
        """Pages by key, in the order of their use, the last used first, and each behind the one that it continues: as
        many of the first as one likes are whole from their beginnings."""
        idle = dict.fromkeys(reversed(self._pool.idle))
        found: dict[bytes, int] = {}
        for page in (*(page for page in self._pages.values() if page not in idle), *idle):
            for key in reversed(self._chain(self._keys[page], found)):
                found[key] = self._pages[key]
        return found

    def before(self, key: bytes) -> bytes:
        """The key of the page that a cached one continues, empty for the first of a text."""
        return self._before[key]

    @property
    def room(self) -> int:
        """Pages that can be added before one goes that is cached."""
        return self._pool.free_pages - self._pool.idle_pages

    def add(self, pages: Mapping[bytes, int], before: Mapping[bytes, bytes]) -> None:
        """Cache pages that hold what their keys say, in the order of `by_use`, as if they had been used now. before: as
        the function of that name. The caller's references to them end here. Of what is cached already the page that is
        there stays."""
        used = []
        for key, page in pages.items():
            if key in self._pages:
                used.append(self._pool.share(self._pages[key]))
                self._pool.release(page)
            else:
                self._add(key, page, before[key])
                used.append(page)
        for page in reversed(used):
            self._pool.release(page)

    def clear(self) -> None:
        """Give all pages back that no sequence uses, and know none any more."""
        for page in self._keys:
            self._pool.drop(page)
        self._pages.clear()
        self._keys.clear()
        self._before.clear()

    def _chain(self, key: bytes, found: Mapping[bytes, int]) -> list[bytes]:
        """A page and those that it continues, from its end on, up to one that is found already; none if one is gone. A
        fork may hold a page longer than what it continues is held, which it has from another sequence."""
        chain = []
        while key and key not in found:
            if key not in self._pages:
                return []
            chain.append(key)
            key = self._before[key]
        return chain

    def _add(self, key: bytes, page: int, before: bytes) -> None:
        self._pool.keep(page)
        self._pages[key] = page
        self._keys[page] = key
        self._before[key] = before

    def _forget(self, page: int) -> None:
        key = self._keys.pop(page)
        del self._pages[key], self._before[key]

    def _require_own(self, sequence: Sequence) -> None:
        if sequence.pool is not self._pool:
            raise PageMisuse(page="-", reason="the sequence belongs to another session")


def _key(before: bytes, tokens: NDArray[np.int32]) -> bytes:
    """before: the key of the page before, empty for the first. All pages have as many tokens: no two inputs read alike
    though nothing is put between their parts."""
    return blake2b(before + tokens.astype("<i4").tobytes(), digest_size=KEY_BYTES, person=_SALT).digest()
