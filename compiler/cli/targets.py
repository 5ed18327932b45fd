"""`dsv3c targets`: what can be compiled for."""

from __future__ import annotations

import click

from dsv3c import targets
from dsv3c.runtime.cli.output import echo, print_json, section
from dsv3c.runtime.cli.params import json_option


@click.command("targets")
@json_option
def targets_command(as_json: bool) -> None:
    """List the known targets and their options.

    Give one to `dsv3c compile --target`, with options after a colon: NAME:OPTION=VALUE,OPTION=VALUE.
    `dsv3c doctor` says what this machine lacks for each.
    """
    entries = targets.available()
    if as_json:
        print_json({name: {"summary": e.summary, "options": dict(e.options)} for name, e in entries.items()})
        return
    for name, entry in entries.items():
        section(f"{name}  {entry.summary}", [(f"{option}=", text) for option, text in entry.options.items()])
        if not entry.options:
            echo(f"{name}  {entry.summary}")
