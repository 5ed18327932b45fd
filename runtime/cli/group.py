"""What both command lines share, the runtime's and the compiler's: how a group runs, and how a fault is told."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence

import click

from dsv3c.runtime.errors import RuntimeFault

DONE, FAULT, INTERRUPTED = 0, 1, 130
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class InOrder(click.Group):
    """Lists the commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Command(click.Command):
    """A command of either program: PROGRAM in its help stands for the name of the one that runs."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace("PROGRAM", ctx.find_root().info_name or "dsv3c")


def run(
    root: click.Group,
    args: Sequence[str] | None,
    program: str,
    faults: tuple[type[Exception], ...] = (RuntimeFault,),
) -> int:
    """Runs one command line and returns its exit code; errors are told on stderr, without a traceback.

    faults: classes whose text is meant for a person as it is.
    """
    try:
        code = root.main(args, prog_name=program, standalone_mode=False)
        if sys.stdout is not None:  # None when the shell closed it: >&-
            sys.stdout.flush()  # here, so that a closed pipe is still met quietly
        return code if isinstance(code, int) else DONE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT
    except Exception as error:
        if os.environ.get("DSV3C_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        click.echo(f"error: {str(error) if isinstance(error, faults) else _explain(error)}", err=True)
        return FAULT


def prepare_stdout() -> None:
    """A story may have letters that the terminal's encoding lacks: they are replaced."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _explain(error: Exception) -> str:
    """What, where and what to do, for a person."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        hint = "\n  hint: make room, or write to another disk" if error.errno == errno.ENOSPC else ""
        return f"{error.strerror}{where}{hint}"
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}\n  hint: `dsv3c plan` says what a model needs"
    hint = "this is a fault of dsv3c; DSV3C_DEBUG=1 shows where"
    return f"{type(error).__name__}: {error}\n  hint: {hint}"
