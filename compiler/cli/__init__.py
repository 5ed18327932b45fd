"""The command line: a thin layer over the compiler and the runtime.

Modules here import only click and the standard library at the top, so that `--help` answers at once; everything else
is imported inside the command that uses it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from dsv3c.compiler.cli.bench import bench_command
from dsv3c.compiler.cli.compile import compile_command
from dsv3c.compiler.cli.doctor import doctor_command
from dsv3c.compiler.cli.generate import generate_command
from dsv3c.compiler.cli.inspect import inspect_command
from dsv3c.compiler.cli.plan import plan_command
from dsv3c.compiler.cli.targets import targets_command
from dsv3c.compiler.cli.tune import tune_command
from dsv3c.compiler.cli.verify import verify_command
from dsv3c.compiler.errors import Dsv3cError

DONE, FAULT, INTERRUPTED = 0, 1, 130


class InOrder(click.Group):
    """Lists the commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dsv3c", message="%(prog)s %(version)s")
def root() -> None:
    """Compile models of the DeepSeek-V3 family for one device, and run them.

    \b
    You have a checkpoint (a folder from Hugging Face with config.json and *.safetensors):
      dsv3c plan CHECKPOINT --quant int4       will it fit?
      dsv3c compile CHECKPOINT -o OUT          make an artifact for this kind of machine
      dsv3c generate OUT -p "Once upon a time" run it; needs neither compiler nor PyTorch

    Exit codes: 0 done, 1 the input or the machine is at fault (one message says what), 2 wrong usage.
    DSV3C_DEBUG=1..4 shows passes and times, rewrites, the IR, and the generated source.
    """


for command in (
    compile_command,
    generate_command,
    bench_command,
    tune_command,
    inspect_command,
    verify_command,
    plan_command,
    doctor_command,
    targets_command,
):
    root.add_command(command)


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; faults are told on stderr, without a traceback."""
    try:
        code = root.main(args, prog_name="dsv3c", standalone_mode=False)
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
        click.echo(f"error: {_explain(error)}", err=True)
        return FAULT


def main() -> NoReturn:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a story may have letters that the terminal's encoding lacks
    sys.exit(run())


def _explain(error: Exception) -> str:
    """What, where and what to do, for a person."""
    from dsv3c.runtime.errors import RuntimeFault  # not at the top: loads the runtime's packages

    if isinstance(error, (Dsv3cError, RuntimeFault)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        hint = "\n  hint: make room, or write to another disk" if error.errno == errno.ENOSPC else ""
        return f"{error.strerror}{where}{hint}"
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}\n  hint: `dsv3c plan` says what a model needs"
    hint = "this is a fault of dsv3c; DSV3C_DEBUG=1 shows where"
    return f"{type(error).__name__}: {error}\n  hint: {hint}"
