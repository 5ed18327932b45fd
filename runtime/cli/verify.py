"""`dsv3c verify`: is an artifact whole and unchanged?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo, print_json, size
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.runtime.cli.progress import TerminalProgress


@click.command("verify", cls=Command)
@click.argument("artifact", type=PATH)
@json_option
def verify_command(artifact: Path, as_json: bool) -> None:
    """Check every hash, size and bound of an ARTIFACT.

    Reads all of it, weights included. Loading an artifact checks sizes, bounds and the kernels, but does not read the
    weights; run this after copying an artifact to another machine. Hashes tell damage, not who made it: kernels are
    native code, so run only artifacts whose source you trust.

    \b
    Example:
      PROGRAM verify artifacts/fairytale-10m-int8-x86
    """
    from dsv3c.runtime.artifact.artifact import verify
    from dsv3c.runtime.cli.progress import terminal_progress

    with terminal_progress() or nullcontext() as progress:
        found = verify(artifact, per_file(progress) if progress else None)
    if as_json:
        print_json({"files": found.files, "bytes": found.bytes, "extra": list(found.extra)})
        return
    echo(f"{artifact}: ok, {found.files} files, {size(found.bytes)}")
    for name in found.extra:
        echo(f"note: {name} is not part of the artifact", err=True)


def per_file(progress: TerminalProgress) -> Callable[[str, int, int], None]:
    """Shows bytes done of one file after another as stages."""
    current, shown = "", 0

    def tell(name: str, done: int, total: int) -> None:
        nonlocal current, shown
        if name != current:
            current, shown = name, 0
            progress.stage(f"hashing {name}", total)
        progress.advance(done - shown)
        shown = done

    return tell
