"""What messages and hints of errors name must be there: commands, options, extras, variables, targets."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import click
import pytest

from dsv3c import targets
from dsv3c.compiler.cli.program import root
from dsv3c.compiler.opt import opt_command
from tests.test_structure import FOLDERS, ROOT, sources

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
OPTIONS = {
    option
    for command in (*root.commands.values(), opt_command)
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in (*parameter.opts, *parameter.secondary_opts)
}
NO_COMMANDS = {"or", "reads", "to"}  # words that follow the name of the program in a sentence


def texts() -> Iterator[str]:
    """What is assigned to `message` or `hint` anywhere, without the fields of formatted strings."""
    for code in (path.read_text(encoding="utf-8") for path in sources(*FOLDERS)):
        if not re.search(r"\b(message|hint) = ", code):
            continue  # reading it as a tree takes time
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("message", "hint"):
                parts = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
                yield "".join(part for part in parts if isinstance(part, str))


TEXTS = sorted({text for text in texts() if re.search(r"--|dsv3c|DSV3C", text)})
VARIABLES = {
    name
    for path in sources("compiler", "runtime")
    for name in re.findall(r'"(DSV3C_[A-Z]+)"', path.read_text(encoding="utf-8"))
}


def test_there_are_texts_to_look_at() -> None:
    assert len(TEXTS) > 30


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_message_names_is_there(text: str) -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= OPTIONS
    assert set(re.findall(r"dsv3c ([a-z]+)", text)) <= {*root.commands, *NO_COMMANDS}
    assert set(re.findall(r"dsv3c\[(\w+)\]", text)) <= set(EXTRAS)
    assert set(re.findall(r"DSV3C_[A-Z]+", text)) <= VARIABLES
    assert set(re.findall(r"--target ([a-z0-9]+)", text)) <= set(targets.TABLE)
