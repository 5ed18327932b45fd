"""The command line: a thin layer over the compiler and the runtime.

Modules here import only click and the standard library at the top, so that `--help` answers at once; everything else
is imported inside the command that uses it. This one imports nothing that takes time, since it is where Ctrl-C is
heeded first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from dsv3c.runtime.cli import interrupt

PROGRAM = "dsv3c"


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; faults are told on stderr, without a traceback."""
    from dsv3c.compiler.cli.program import root
    from dsv3c.runtime.cli import group

    return group.run(root, args, PROGRAM)


def main() -> NoReturn:
    interrupt.ends_at_once()
    from dsv3c.runtime.cli import group

    group.prepare_streams()
    sys.exit(run())
