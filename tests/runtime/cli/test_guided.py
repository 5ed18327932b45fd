"""Options for structured output: files become texts, and an answer that was broken off is told."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dsv3c.runtime.cli.guided import guided_options, unfinished_note
from dsv3c.runtime.engine.generation import FinishReason, Generation
from dsv3c.runtime.errors import RuntimeFault


@click.command
@guided_options
def command(**options: object) -> None:
    click.echo(repr({name: value for name, value in options.items() if value is not None}))


def run(*args: str) -> str:
    return CliRunner().invoke(command, list(args), catch_exceptions=False).output.strip()


def test_files_are_read(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_bytes(b'\xef\xbb\xbf{"const": "\xc3\xa4"}')
    grammar.write_text('start: "a"')
    assert run("--json-schema", str(schema)) == repr({"json_schema": '{"const": "ä"}'})
    assert run("--grammar", str(grammar), "--regex", "a+") == repr({"grammar": 'start: "a"', "regex": "a+"})
    assert run() == "{}"


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"a\xff", "byte 1 is not UTF-8")])
def test_a_file_that_is_no_text_is_told(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RuntimeFault, match=reason):
        run("--grammar", str(path))


@pytest.mark.parametrize(
    ("how", "reason", "note"),
    [
        ({"regex": "a"}, "stop", None),
        ({}, "length", None),
        ({"json_schema": "{}"}, "length", "the answer was broken off (length), its json_schema has not ended"),
        ({"grammar": "…"}, "time", "the answer was broken off (time), its grammar has not ended"),
    ],
)
def test_an_answer_that_was_broken_off_is_told(how: dict[str, str], reason: FinishReason, note: str | None) -> None:
    assert unfinished_note(how, Generation("", (), reason, 1, 1.0, 1.0, 1)) == note
