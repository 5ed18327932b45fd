"""`dsv3c serve`: models over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli.group import Command
from dsv3c.runtime.cli.output import echo
from dsv3c.runtime.cli.params import PATH, Finite, numa_option, threads_option
from dsv3c.runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from dsv3c.runtime.server.settings import Settings

KEY_VARIABLE = "DSV3C_API_KEY"
_KEYS_LIMIT = 1 << 16
_SECTIONS = {
    "Who may": ("host", "port", "api_key_file", "cors"),
    "Models": (
        "models",
        "context",
        "max_batch",
        "queue",
        "idle",
        "cache_dir",
        "speculate",
        "draft",
        "threads",
        "numa",
        "device",
    ),
}


class ServerMissing(RuntimeFault):
    message = "the server needs a package that cannot be imported: {reason}"
    hint = "pip install 'dsv3c[server]', or 'dsv3c-runtime[server]' on a device"


class KeysInvalid(RuntimeFault):
    message = "{path} holds no API keys: {reason}"
    hint = "write one key a line, of letters, digits and signs without blanks; lines that begin with # are left out"


class NothingToServe(RuntimeFault):
    message = "there is no model to serve"
    hint = "name artifacts, or a folder of artifacts with --models DIR"


class NoModelsFolder(RuntimeFault):
    message = "--models is {path}, which is no folder"
    hint = "name the folder that the artifacts lie in"


@click.command("serve", cls=Command, sections=_SECTIONS)
@click.argument("artifacts", type=PATH, nargs=-1, metavar="[ARTIFACT]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key-file",
    type=PATH,
    metavar="FILE",
    help=f"Let in only who has a key of this file, one a line. {KEY_VARIABLE} holds one, too.",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin use the server; * for all. Repeatable."
)
@click.option("--models", type=PATH, metavar="DIR", help="Serve the artifacts in this folder, too.")
@click.option("--context", type=click.IntRange(min=1), metavar="N", help="Tokens of a conversation at most.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="Answers at once, of each model; the cache has room for as many in full.",
)
@click.option(
    "--queue", type=click.IntRange(min=0), default=64, show_default=True, metavar="N", help="Requests that may wait."
)
@click.option(
    "--idle", type=Finite(min=0, min_open=True), metavar="SECONDS", help="Unload models that nobody used for so long."
)
@click.option("--cache-dir", type=PATH, metavar="DIR", help="Keep what was read there, for the next start.")
@click.option("--speculate", type=click.Choice(["mtp", "ngram"]), help="Draft tokens, as `PROGRAM generate` does.")
@click.option("--draft", type=PATH, metavar="OUT", help="The same with a smaller artifact that has the same tokens.")
@threads_option()
@numa_option
@click.option("--device", metavar="D", help="The GPU to run on, as `PROGRAM doctor` lists them.")
@click.option(
    "--grace",
    type=Finite(min=0, max=86400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running requests may go on after SIGTERM.",
)
@click.option("--log-json", is_flag=True, help="Log a JSON object a line.")
def serve_command(artifacts: tuple[Path, ...], api_key_file: Path | None, **options: Any) -> None:
    """Serve ARTIFACTs over HTTP, with the APIs of OpenAI, Anthropic and llama-server, and a page.

    The first is loaded now, others when they are asked for by the name of their folder. It listens on this machine
    alone unless --host says otherwise. Ctrl-C or SIGTERM ends it, after the requests that run.

    \b
    Examples:
      PROGRAM serve OUT
      PROGRAM serve --models artifacts --idle 600
      PROGRAM serve OUT --host 0.0.0.0 --api-key-file keys.txt
    """
    if options["speculate"] is not None and options["draft"] is not None:
        raise click.UsageError("give either --speculate or --draft")
    try:
        from dsv3c.runtime.server.serving import serve
        from dsv3c.runtime.server.settings import Settings
    except ImportError as error:
        raise ServerMissing(reason=error) from None
    draft = options.pop("draft")
    options["speculate"] = options["speculate"] or (None if draft is None else str(draft))
    settings = Settings(artifacts=artifacts, keys=read_keys(api_key_file), **options)
    _check(settings)
    serve(settings)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Of a file and of the environment. Raises KeysInvalid, FileUnreadable."""
    from dsv3c.runtime.artifact.jsonfile import read_bytes

    named = os.environ.get(KEY_VARIABLE)
    found = [] if named is None else [_key(named, KEY_VARIABLE)]
    if path is None:
        return tuple(found)
    try:
        lines = read_bytes(path, _KEYS_LIMIT).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise KeysInvalid(path=path, reason="it is no plain text") from None
    kept = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not kept:
        raise KeysInvalid(path=path, reason="it is empty")
    return (*found, *(_key(line, path) for line in kept))


def _key(text: str, where: Path | str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise KeysInvalid(path=where, reason="one of them is empty or has blanks or letters beyond ASCII")
    return text


def _check(settings: Settings) -> None:
    """What can be told before anything is loaded. Raises NothingToServe, NoModelsFolder, and for artifacts what opening
    one does."""
    from dsv3c.runtime.artifact.artifact import MANIFEST, Artifact

    if not settings.artifacts and settings.models is None:
        raise NothingToServe()
    if settings.models is not None and not settings.models.is_dir():
        raise NoModelsFolder(path=settings.models)
    for folder in settings.artifacts:
        Artifact.open(folder)
    if not settings.artifacts and settings.models is not None and not any(settings.models.glob(f"*/{MANIFEST}")):
        echo(f"WARNING: {settings.models} has no artifact so far; one that comes there is found by its name", err=True)
    if not settings.loopback and not settings.keys:
        echo(
            f"WARNING: without a key, everybody who reaches {settings.host} can use these models; give --api-key-file, "
            "or leave --host out",
            err=True,
        )
