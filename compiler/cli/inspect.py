"""`dsv3c inspect`: what is in an artifact or a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dsv3c.compiler.errors import Dsv3cError
from dsv3c.runtime.cli.inspect import describe_artifact, show
from dsv3c.runtime.cli.params import PATH, json_option

MANIFEST, CONFIG, GGUF = "manifest.json", "config.json", ".gguf"


class NothingToInspectError(Dsv3cError):
    message = "{path} is neither an artifact nor a checkpoint: {reason}"
    hint = "an artifact is a folder with manifest.json, a checkpoint one with config.json and *.safetensors or a *.gguf"


@click.command("inspect")
@click.argument("path", type=PATH)
@json_option
def inspect_command(path: Path, as_json: bool) -> None:
    """Show what is in an artifact or a checkpoint.

    PATH is the folder of either, or a GGUF file. Of both: the model's config, the sizes of its parts, bits per weight.
    Of an artifact also the target, the buffers and the kernels. Weights are not read.

    \b
    Examples:
      dsv3c inspect artifacts/models/fairytale-10m
      dsv3c inspect OUT --json
    """
    if path.suffix.lower() == GGUF and not path.is_dir():
        show(path, describe_checkpoint(path), as_json)
        return
    if not path.is_dir():
        raise NothingToInspectError(path=path, reason="it is not a folder" if path.exists() else "it does not exist")
    if (path / MANIFEST).exists():
        report = describe_artifact(path)
    elif (path / CONFIG).exists():
        report = describe_checkpoint(path)
    else:
        raise NothingToInspectError(path=path, reason=f"it has neither {MANIFEST} nor {CONFIG}")
    show(path, report, as_json)


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Config and stored sizes of a checkpoint. Raises a CheckpointError for one that could not be compiled."""
    from dsv3c.compiler.checkpoint import Checkpoint
    from dsv3c.compiler.checkpoint.parts import PARTS, part_of
    from dsv3c.compiler.driver.sizes import ModelPart

    checkpoint = Checkpoint.open(path)
    layers = checkpoint.config.num_hidden_layers
    total_bytes: Counter[str] = Counter()
    dtypes: dict[str, Counter[str]] = {}
    for name, tensor in checkpoint.stored.items():
        part, info = part_of(name, layers), tensor.info
        total_bytes[part] += info.end - info.begin
        dtypes.setdefault(part, Counter())[info.dtype] += info.end - info.begin
    weights: Counter[str] = Counter()
    for name, shape in checkpoint.shapes.items():
        weights[part_of(name, layers)] += math.prod(shape)
    formats = {part: ", ".join(dtype for dtype, _ in counts.most_common()) for part, counts in dtypes.items()}
    parts = {name: ModelPart(total_bytes[name], weights[name], formats[name]) for name in PARTS if name in formats}
    return {
        "kind": "checkpoint",
        "config": checkpoint.config.to_dict(),
        "parts": {name: asdict(part) for name, part in parts.items()},
        "files": {name: path.stat().st_size for name, path in checkpoint.weight_files.items()},
        "notes": list(checkpoint.notes),
    }
