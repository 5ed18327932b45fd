"""Options that say what an answer has to follow: a JSON schema, a grammar, a regular expression."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.artifact.jsonfile import read_bytes
from dsv3c.runtime.cli.params import PATH, Command
from dsv3c.runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from dsv3c.runtime.engine.generation import Generation

LIMIT = 16 << 20  # bytes
NAMES = ("json_schema", "grammar", "regex")


class GuideInvalid(RuntimeFault):
    message = "{path} is no text: byte {place} is not UTF-8"
    hint = "give a file of UTF-8 text: a JSON schema, or a grammar in Lark"


def text_of_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    """An option's callback: the content of a file. Raises GuideInvalid, and what `read_bytes` raises."""
    if value is None:
        return None
    try:
        return read_bytes(value, LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GuideInvalid(path=value, place=error.start) from error


_OPTIONS = (
    click.option(
        "--json-schema",
        type=PATH,
        callback=text_of_file,
        metavar="FILE",
        help="Answer with JSON that this schema describes.",
    ),
    click.option(
        "--grammar",
        type=PATH,
        callback=text_of_file,
        metavar="FILE",
        help="Answer with a text of this grammar (Lark, as llguidance has it).",
    ),
    click.option("--regex", metavar="PATTERN", help="Answer with a text that this regular expression matches."),
)


def guided_options(command: Command) -> Command:
    """Adds the options `json_schema`, `grammar` and `regex`: at most one is to be given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def unfinished_note(how: Mapping[str, Any], generation: Generation) -> str | None:
    """What to tell of an answer that was broken off before it was what these parameters ask for."""
    name = next((name for name in NAMES if how.get(name) is not None), None)
    if name is None or generation.finish_reason == "stop":
        return None
    return f"the answer was broken off ({generation.finish_reason}), its {name} has not ended"
