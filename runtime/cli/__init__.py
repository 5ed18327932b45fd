"""The command line of the runtime: what a device needs. `dsv3c` has the same commands among its own.

Modules here import only click and the standard library at the top, so that `--help` answers at once; everything else
is imported inside the command that uses it. This one imports nothing that takes time, since it is where Ctrl-C is
heeded first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from dsv3c.runtime.cli import interrupt


def run(args: Sequence[str] | None = None, program: str = "dsv3c-runtime") -> int:
    """Runs one command line and returns its exit code."""
    from dsv3c.runtime.cli import group
    from dsv3c.runtime.cli.program import root

    return group.run(root, args, program)


def main(program: str = "dsv3c-runtime") -> NoReturn:
    interrupt.ends_at_once()
    from dsv3c.runtime.cli import group

    group.prepare_streams()
    sys.exit(run(program=program))
