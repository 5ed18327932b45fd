"""The modules that a quantization_config leaves out, by the ways that formats name them.

Patterns come from a file that nobody vouches for: only those are followed that take linear time, made of plain names,
`.*`, `\\d+` and choices `(a|b)`. What is not followed says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsv3c.compiler.checkpoint.fields import ConfigFields

_MAX_ENTRY = 1000  # characters
_PIECE = re.compile(r"(?:[\w-]|\\[.\-_]|\.|\\d\+|\[0-9\]\+|\((?:\?:)?(?:[\w|.-]|\\\.)+\))*")


def modules(config: ConfigFields, key: str) -> tuple[str, ...]:
    """The list of names under `key`, empty when it is absent. Raises ConfigValueError."""
    found = config.values.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise config.wrong(key, "a list of names of modules")
    return tuple(found)


def naming(module: str, entries: Sequence[str]) -> str | None:
    """The entry that names `module`, as transformers has them: some of its components in a row, `*` for any one."""
    components = module.split(".")
    for entry in entries:
        wanted = entry.split(".")
        starts = range(len(components) - len(wanted) + 1)
        if any(_alike(components[start : start + len(wanted)], wanted) for start in starts):
            return entry
    return None


def matching(module: str, entries: Sequence[str]) -> str | None:
    """The entry that matches `module`, as compressed-tensors has them: its whole name, or a pattern behind `re:`."""
    for entry in entries:
        if entry == module or (entry.startswith("re:") and follows(entry.removeprefix("re:"), module)):
            return entry
    return None


def follows(pattern: str, module: str) -> bool:
    """Whether re.match finds the pattern, as far as it is of the kind that is followed; else False."""
    ends = pattern.endswith("$") and not pattern.endswith("\\$")
    *pieces, last = pattern.removeprefix("^").removesuffix("$" if ends else "").split(".*")
    if len(pattern) > _MAX_ENTRY or not all(_PIECE.fullmatch(piece) for piece in (*pieces, last)):
        return False
    at = 0
    for number, piece in enumerate((*pieces, last)):
        if number == len(pieces) and ends:
            return _at_end(piece, module, at, anchored=number == 0)
        compiled = re.compile(piece)
        found = compiled.match(module, at) if number == 0 else compiled.search(module, at)
        if found is None:
            return False
        at = found.end()
    return True


def _at_end(piece: str, module: str, at: int, anchored: bool) -> bool:
    compiled = re.compile(piece)
    starts = (at,) if anchored else range(at, len(module) + 1)
    return any(compiled.fullmatch(module, start) for start in starts)


def _alike(components: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(each in ("*", component) for component, each in zip(components, wanted, strict=True))
