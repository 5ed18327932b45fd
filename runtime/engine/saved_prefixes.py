"""The prefix cache on disk: keys of its pages in the order of their use, with their rows of every cache.

The last used page comes first and each stands behind the one that it continues, whose place `before` names (-1 for the
first of a text), so a cache that holds fewer takes the beginning of the file. A key stands for all tokens up to the end
of its page (`PrefixCache`), which are not in the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.engine import saved_file
from dsv3c.runtime.engine.prefix_cache import KEY_BYTES, PrefixCache
from dsv3c.runtime.engine.saved_file import Content, Kind, SavedFile
from dsv3c.runtime.engine.session import Session
from dsv3c.runtime.errors import WeightsInvalid

KIND = Kind("prefix cache", version=1)


def save(path: Path, session: Session, artifact: Artifact, prefixes: PrefixCache) -> int:
    """Save all that is cached; the number of tokens. The file is there as a whole, or what was there before is. Raises
    SaveRefused."""
    cached = prefixes.by_use()
    keys = np.frombuffer(b"".join(cached), np.uint8).reshape(-1, KEY_BYTES)
    pages = np.fromiter(cached.values(), np.int32)
    places = {b"": -1, **{key: place for place, key in enumerate(cached)}}
    before = np.fromiter((places[prefixes.before(key)] for key in cached), np.int32)
    length = pages.size * session.plan.page_size
    saved_file.write(path, KIND, session, artifact, Content({"keys": keys, "before": before}, pages, length))
    return length


def restore(path: Path, session: Session, artifact: Artifact, prefixes: PrefixCache) -> int:
    """Cache as many of the saved pages, the last used first, as there is room for beside all that is cached; the number
    of tokens. Raises SavedInvalid, SavedNewer, SavedDamaged, SavedElsewhere, and then nothing changed."""
    with saved_file.opened(path, KIND, session, artifact, {"keys", "before"}) as found:
        before = _keys(found, session.plan.page_size)
        keys = list(before)[: prefixes.room]
        pages = [session.pool.allocate() for _ in keys]
        length = len(pages) * session.plan.page_size
        try:
            found.fill(np.array(pages, np.int32), length)
        except BaseException:
            for page in pages:
                session.pool.release(page)
            raise
        prefixes.add(dict(zip(keys, pages, strict=True)), before)
        return length


def _keys(found: SavedFile, page_size: int) -> dict[bytes, bytes]:
    """With the key of the page before each. Raises WeightsInvalid unless there is one for each page of the rows."""
    count = found.length // page_size
    array = found.array("keys", "uint8", 2, limit=count * KEY_BYTES)
    if array.shape != (count, KEY_BYTES) or found.length % page_size:
        raise WeightsInvalid(where="keys", reason=f"has the shape {array.shape} for rows of {found.length} tokens")
    keys = [key.tobytes() for key in array]
    if len(set(keys)) != count:
        raise WeightsInvalid(where="keys", reason="has one of them twice")
    places = found.array("before", "int32", 1, limit=4 * count)
    if places.size != count or np.any((places < -1) | (places >= np.arange(count))):
        raise WeightsInvalid(where="before", reason="names no page that stands before each")
    return {key: keys[place] if place >= 0 else b"" for key, place in zip(keys, places.tolist(), strict=True)}
