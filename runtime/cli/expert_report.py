"""`generate --expert-stats`: how often each expert was chosen, as JSON and as a heat map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsv3c.runtime.cli.output import echo
from dsv3c.runtime.cli.own_files import check_place, write_whole
from dsv3c.runtime.cli.params import PATH
from dsv3c.runtime.errors import RuntimeFault

if TYPE_CHECKING:
    from dsv3c.runtime.engine.expert_stats import ExpertStats
    from dsv3c.runtime.model import Model

Command = TypeVar("Command", bound=Callable[..., Any])
MARK = "counted by dsv3c generate"  # in every file, so that nothing else is overwritten
WINDOW = 256  # as in runtime/engine/expert_stats.py, which takes numpy
_SUFFIXES = (".json", ".svg")


class ExpertStatsRefused(RuntimeFault):
    message = "cannot write {path}: {reason}"
    hint = "name another file with --expert-stats"


def files_of(path: Path) -> tuple[Path, Path]:
    """The JSON and the picture beside it; either name stands for both."""
    stem = path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path
    json_file, picture = (stem.with_name(stem.name + suffix) for suffix in _SUFFIXES)
    return json_file, picture


def _checked(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Before the model is loaded. Raises ExpertStatsRefused."""
    if value is not None:
        for path in files_of(value):
            check_place(path, MARK, ExpertStatsRefused)
    return value


_OPTIONS = (
    click.option(
        "--expert-stats",
        type=PATH,
        callback=_checked,
        metavar="FILE",
        help="Count how often each expert is chosen, and write it to FILE.json and as a heat map to FILE.svg.",
    ),
    click.option(
        "--expert-window",
        type=click.IntRange(1, 1 << 20),
        metavar="N",
        default=WINDOW,
        show_default=True,
        help="Of the last N tokens, --expert-stats also counts apart.",
    ),
)


def expert_options(command: Command) -> Command:
    """Adds the options `expert_stats` and `expert_window`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@contextmanager
def counted(model: Model, path: Path | None, window: int) -> Iterator[None]:
    """Count while it is open, then write the files; nothing without a path, and no files after an error. Raises what
    `Model.count_experts` does, and ExpertStatsRefused."""
    if path is None:
        yield
        return
    with model.count_experts(window) as stats:
        yield
    write(path, str(model.artifact.manifest.model.get("name", model.artifact.folder.name)), stats)


def write(path: Path, model: str, stats: ExpertStats) -> None:
    from dsv3c.runtime.cli.expert_map import svg

    json_file, picture = files_of(path)
    content = {"made": MARK, "model": model, **stats.to_json()}
    texts = {json_file: _json(content), picture: svg(stats, model, MARK)}
    for file in texts:
        check_place(file, MARK, ExpertStatsRefused)
    for file, text in texts.items():
        write_whole(file, text.encode())
    echo(f"experts of {stats.tokens} tokens: {json_file}, {picture}", err=True)


def _json(content: dict[str, Any]) -> str:
    """Indented, but each layer in a line: its counts are long lists."""
    layers = ",\n".join(f"    {json.dumps(layer)}" for layer in content["layers"])
    head = json.dumps({**content, "layers": []}, indent=2, ensure_ascii=False)
    return head.replace('"layers": []', f'"layers": [\n{layers}\n  ]') + "\n"
