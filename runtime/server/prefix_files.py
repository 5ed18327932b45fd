"""Prefix caches outlive the server: a file for each artifact in a folder.

They save time and nothing else: whatever is wrong with a file is a warning, and the prompts are read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model

log = logging.getLogger(__name__)
_WRONG = (RuntimeFault, OSError, MemoryError)


def restore(model: Model, folder: Path) -> None:
    """Cache what `save` left for this artifact in the folder."""
    path = _place(model, folder)
    if path.exists():
        _told(lambda: model.restore_prefixes(path), "restored", "the prefix cache starts empty", path)


def save(model: Model, folder: Path) -> None:
    """In place of what was saved of this artifact before. The folder is made, for this user alone, if it is missing."""
    path = _place(model, folder)

    def saved() -> int:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return model.save_prefixes(path)

    _told(saved, "saved", "the prefix cache is not saved", path)


def _told(work: Callable[[], int], done: str, undone: str, path: Path) -> None:
    """Log how many tokens the work was for, or what was wrong."""
    began = time.monotonic()
    try:
        tokens = work()
    except _WRONG as error:
        log.warning("%s: %s", undone, error)
        return
    log.info("prefixes of %d tokens %s in %.1f s: %s", tokens, done, time.monotonic() - began, path)


def _place(model: Model, folder: Path) -> Path:
    return folder / f"{model.artifact.identity}.prefixes"
