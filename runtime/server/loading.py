"""Loads an artifact for a server and lets go of it, and says what it takes. Runs in a thread, beside the event loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.runtime.devices.cpu import cgroup
from dsv3c.runtime.measure import machine
from dsv3c.runtime.server import prefix_files
from dsv3c.runtime.server.settings import Settings

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model

_WEIGHTS = "weights.safetensors"


def load(folder: Path, settings: Settings) -> Model:
    """With as much context and as many sequences as were asked for, or as the artifact has. Raises RuntimeFault."""
    from dsv3c.runtime.artifact.artifact import Artifact
    from dsv3c.runtime.devices.device import Placement
    from dsv3c.runtime.model import Model, Serving

    artifact = Artifact.open(folder)
    plan = artifact.plan
    batch = min(settings.max_batch, plan.bounds.S)
    context = None if settings.context is None else min(settings.context, plan.context)
    placement = Placement(threads=settings.threads, device=settings.device, numa=settings.numa)
    model = Model.load(artifact, placement, Serving(context, batch, settings.speculate))
    if model.has_tokenizer:
        _ = model.tokenizer  # read now, not by the first request
    if settings.cache_dir is not None:
        prefix_files.restore(model, settings.cache_dir)
    return model


def unload(model: Model, cache_dir: Path | None) -> None:
    """Close it. cache_dir: where its prefixes are saved before."""
    try:
        if cache_dir is not None:
            prefix_files.save(model, cache_dir)
    finally:
        model.close()


def weight_bytes(folder: Path) -> int:
    """That loading maps; 0 where there is nothing."""
    try:
        return (folder / _WEIGHTS).stat().st_size
    except OSError:
        return 0


def available_bytes(root: Path = cgroup.ROOT) -> int | None:
    """Of memory, as the system and the control groups of this process have it; None where nothing says so. root: the
    folder that holds proc and sys."""
    return machine.memory(root).available or None
