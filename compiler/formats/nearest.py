"""Which format somebody may mean by a name that is none: a type of GGUF, a name of another program, a misspelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Blocks of GGUF with the same grouping, as ggml-common.h has them: K-quants of 2, 4 and 5 bits have a minimum a group.
_GGUF = re.compile(r"(?P<grid>i?q)(?P<bits>[2-6]|8)(?:[-_](?P<kind>[01k]|nl)?.*)?")
_WITH_ZEROS = {"1": "3458", "k": "245"}
_GROUPS_OF_16 = {"k": "236"}
_BITS = re.compile(r"(?:w|[ius]|u?int)?[-_]?([2-6]|8)[-_]?(?:bits?|a(?:8|16))?")
_FLOATS = {
    "float32": re.compile(r"f(?:p|loat)?[-_]?32|single|full"),
    "float16": re.compile(r"f(?:p|loat)?[-_]?16|half"),
    "bfloat16": re.compile(r"b(?:rain)?[-_]?f(?:p|loat)?[-_]?16"),
    "fp8": re.compile(r"f(?:p|loat)?[-_]?8.*|e4m3(?:fn)?"),
    "mxfp4": re.compile(r"(?:mx|nv)?[-_]?f(?:p|loat)?[-_]?4.*|e2m1"),
}


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The one of the formats `names` that is most like what `text` says; None where nothing is."""
    name = text.strip().lower()
    known = list(names)
    found = next((full for full, pattern in _FLOATS.items() if pattern.fullmatch(name)), None)
    if match := _GGUF.fullmatch(name):
        found = _of_gguf(match["grid"], match["bits"], match["kind"] or "")
    elif match := _BITS.fullmatch(name):
        found = _integers(match[1])
    if found in known:
        return found
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def _of_gguf(grid: str, bits: str, kind: str) -> str:
    if kind == "nl":
        return "nf4-g32"
    if grid == "iq" or not kind:
        return _integers(bits, "-g32")
    group = "-g16" if bits in _GROUPS_OF_16.get(kind, "") else "-g32"
    return f"int{bits}{group}" + ("-asym" if bits in _WITH_ZEROS.get(kind, "") else "")


def _integers(bits: str, of_8: str = "") -> str:
    """As `int6`, `int5`, `int4`, `int3`, `int2` alone are understood."""
    return f"int{bits}" + {"8": of_8, "2": "-g16"}.get(bits, "-g32")
