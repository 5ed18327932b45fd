"""`dsv3c package`: an archive that a device unpacks and runs."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dsv3c.runtime.cli.output import echo, print_json, section, size
from dsv3c.runtime.cli.params import PATH, json_option

if TYPE_CHECKING:
    from dsv3c.compiler.packaging import PackageReport

OLDEST_PYTHON = (3, 11)
SERVER = ("server",)  # extras of the runtime; not `guidance`, whose wheels want a newer glibc than an archive does


def python_version(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A version such as 3.11, which the runtime runs on."""
    match = re.fullmatch(r"(\d+)\.(\d+)", value)
    if not match or (int(match[1]), int(match[2])) < OLDEST_PYTHON:
        raise click.BadParameter(f"{value!r} is no version of Python from {'.'.join(map(str, OLDEST_PYTHON))} on")
    return value


@click.command("package")
@click.argument("artifact", type=PATH)
@click.option("-o", "--out", type=PATH, metavar="FILE", help="The archive.  [default: ARTIFACT-<platform>.tar.gz]")
@click.option(
    "--platform",
    metavar="NAME",
    help="The device: linux-x86_64, linux-aarch64 or macos-arm64.  [default: what ARTIFACT was compiled for]",
)
@click.option(
    "--python",
    callback=python_version,
    metavar="X.Y",
    default=f"{sys.version_info.major}.{sys.version_info.minor}",
    help="Version of Python on the device.  [default: that of this one]",
)
@click.option(
    "--wheels/--no-wheels",
    default=True,
    show_default=True,
    help="Put the packages that the runtime needs into the archive; without them the device installs them with pip.",
)
@click.option("--server", is_flag=True, help="Take along what `serve` needs: run.sh serve then serves the model.")
@click.option("--overwrite", is_flag=True, help="Replace an archive that is already there, and nothing else.")
@json_option
def package_command(
    artifact: Path,
    out: Path | None,
    platform: str | None,
    python: str,
    wheels: bool,
    server: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Put an ARTIFACT and all it needs into one archive for a device.

    The device needs Python and nothing else, not even a network: beside the artifact the archive holds the runtime and
    the wheels of its packages for the device's system, which this command downloads. Unpack it there and start run.sh,
    which takes the options of `dsv3c generate`. FILE ends in .tar.gz, or in .tar, which suits large models: weights
    hardly get smaller.

    \b
    Examples:
      dsv3c package artifacts/fairytale-10m-int8-x86
      dsv3c package OUT --python 3.12 -o model.tar
      tar -xf model.tar && model/run.sh -p "Once upon a time"    on the device
    """
    from dsv3c.compiler.packaging import package
    from dsv3c.compiler.packaging.platforms import PLATFORMS
    from dsv3c.runtime.cli.progress import terminal_progress
    from dsv3c.runtime.progress import Silent

    if platform is not None and platform not in PLATFORMS:
        raise click.BadParameter(f"{platform!r} is not one of {', '.join(PLATFORMS)}", param_hint="'--platform'")
    with terminal_progress() or nullcontext(Silent()) as progress:
        extras = SERVER if server else ()
        report = package(
            artifact, out, platform, python, progress, with_wheels=wheels, overwrite=overwrite, extras=extras
        )
    for note in report.notes:
        echo(f"note: {note}", err=True)
    if as_json:
        print_json(vars(report) | {"archive": str(report.archive)})
        return
    _tell(report)


def _tell(report: PackageReport) -> None:
    count = len(report.wheels)
    section(
        f"packed {report.archive}, {size(report.size)}",
        [
            ("model", size(report.model_bytes)),
            ("wheels", f"{count}, {size(report.wheel_bytes)}, for Python {report.python} on {report.platform}"),
        ],
    )
    name = report.archive.name
    folder = name.removesuffix(".gz").removesuffix(".tar")
    echo(f'on the device: tar -xf {name} && {folder}/run.sh -p "Once upon a time"')
