"""The commands of `dsv3c-runtime`."""

from __future__ import annotations

import click

from dsv3c.runtime import __version__
from dsv3c.runtime.cli import group
from dsv3c.runtime.cli.bench import bench_command
from dsv3c.runtime.cli.chat import chat_command
from dsv3c.runtime.cli.doctor import doctor_command
from dsv3c.runtime.cli.eval import eval_command
from dsv3c.runtime.cli.generate import generate_command
from dsv3c.runtime.cli.inspect import inspect_command
from dsv3c.runtime.cli.serve import serve_command
from dsv3c.runtime.cli.verify import verify_command


@click.group(cls=group.InOrder, context_settings=group.SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Run models that dsv3c compiled for this kind of device.

    Exit codes: 0 done, 1 the artifact or the machine is at fault (one message says what), 2 wrong usage.
    DSV3C_DEBUG=1 shows where a fault came from; DSV3C_ISA=LEVEL makes the runtime use that kernel level.
    """


for command in (
    generate_command,
    chat_command,
    serve_command,
    bench_command,
    eval_command,
    inspect_command,
    verify_command,
    doctor_command,
):
    root.add_command(command)
