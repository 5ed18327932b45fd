"""A schema for an answer that begins within thoughts: it holds for what comes after them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.text.thoughts import CLOSE

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer

# As schemas alone are followed (`engine.grammar`); "x-guidance" is where a schema within a grammar says so.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def after_thoughts(schema: str | Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """A grammar in llguidance's Lark: any thoughts, the tag that closes them, JSON. schema: one that is valid."""
    answer = inline_schema(json.loads(schema) if isinstance(schema, str) else schema)
    closing = tokenizer.token_id(CLOSE)
    if closing is None:  # the tag is text
        escaped = CLOSE.replace("/", "\\/")
        return f"start: thoughts gap answer\nthoughts[lazy]: /(.|\\n)*{escaped}/\n{_gap_and(answer)}"
    return f"start: thoughts <[{closing}]> gap answer\nthoughts: /(.|\\n)*/\n{_gap_and(answer)}"


def inline_schema(schema: Mapping[str, Any]) -> str:
    """What stands in a rule for JSON of it, with the spaces of a schema alone."""
    return f"%json {json.dumps({'x-guidance': _SPACING, **schema})}"


def _gap_and(answer: str) -> str:
    return f"gap: /\\n{{0,2}}/\nanswer: {answer}\n"
