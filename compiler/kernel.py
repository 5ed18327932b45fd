"""`python -m dsv3c.compiler.kernel`: build one kernel. A tool for whoever works on kernels."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from dsv3c.compiler.cli.params import target_string
from dsv3c.runtime.cli import group
from dsv3c.runtime.cli.output import columns, echo, size
from dsv3c.runtime.cli.params import PATH

PROGRAM = "python -m dsv3c.compiler.kernel"


@click.command("kernel", context_settings=group.SETTINGS)
@click.argument("spec", metavar="SPEC")
@click.option("--target", callback=target_string, default="x86", show_default=True, help="What to build it for.")
@click.option("--level", metavar="NAME", help="The level of a CPU target.  [default: the lowest]")
@click.option("-o", "--out", type=PATH, metavar="DIR", help="Keep what is built in DIR, a new folder.")
def kernel_command(spec: str, target: str, level: str | None, out: Path | None) -> None:
    """Build the kernel SPEC as `dsv3c compile` does, which prints this command when one fails.

    SPEC is a kernel's spec as Python prints it; DSV3C_DEBUG=4 shows the generated source.

    \b
    Example:
      python -m dsv3c.compiler.kernel "Swiglu(rows=Rows(bound=18), d=37)" --level x86-64-v4
    """
    from dsv3c import targets

    configured = targets.configured(target)
    if not configured.layout:
        raise click.BadParameter(f"{configured.name} has no kernels of its own", param_hint="'--target'")
    started = time.monotonic()
    if out is not None and out.exists():
        raise click.BadParameter(f"{out} is there already", param_hint="'--out'")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "kernel")
        place.mkdir()
        configured.build_kernel(spec, level, place)
        rows = [(path.name, size(path.stat().st_size)) for path in sorted(place.iterdir())]
        if out is not None:
            shutil.copytree(place, out)
    echo("\n".join([f"built in {time.monotonic() - started:.1f} s", *columns(rows)]))


def run(args: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    return group.run(kernel_command, args, PROGRAM)


def main() -> NoReturn:
    group.prepare_streams()
    sys.exit(run())


if __name__ == "__main__":
    main()
