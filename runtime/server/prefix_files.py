"""Prefix caches outlive the server: a file for each artifact in a folder.

They save time and nothing else: whatever is wrong with a file is a warning, and the prompts are read again.
"""

from __future__ import annotations

import logging
import time
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
    if not path.exists():
        return
    began = time.monotonic()
    try:
        tokens = model.restore_prefixes(path)
    except _WRONG as error:
        log.warning("the prefix cache starts empty: %s", error)
        return
    log.info("prefixes of %d tokens restored in %.1f s from %s", tokens, time.monotonic() - began, path)


def save(model: Model, folder: Path) -> None:
    """In place of what was saved of this artifact before. The folder is made, for this user alone, if it is missing."""
    path = _place(model, folder)
    began = time.monotonic()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tokens = model.save_prefixes(path)
    except _WRONG as error:
        log.warning("the prefix cache is not saved: %s", error)
        return
    log.info("prefixes of %d tokens saved in %.1f s as %s", tokens, time.monotonic() - began, path)


def _place(model: Model, folder: Path) -> Path:
    return folder / f"{model.artifact.identity}.prefixes"
