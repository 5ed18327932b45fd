"""What a checkpoint is called, and where it comes from."""

from __future__ import annotations

from pathlib import Path

from dsv3c.compiler.checkpoint import gguf


def model_name(path: Path) -> str:
    """What a model is called: as its folder, as its GGUF file, or in the cache of a hub as its repository."""
    if gguf.is_gguf(path):
        return gguf.stem(path)
    source = hub_source(path)
    return path.resolve().name if source is None else source["id"].partition("/")[2]


def hub_source(path: Path) -> dict[str, str] | None:
    """Id and commit of a checkpoint in the cache of a hub, models--ORG--NAME/snapshots/COMMIT."""
    folder = path.parent.resolve() if gguf.is_gguf(path) else path.resolve()  # there files are links to blobs
    kind, _, name = folder.parent.parent.name.partition("--")
    if folder.parent.name != "snapshots" or kind != "models" or "--" not in name:
        return None
    return {"id": name.replace("--", "/", 1), "revision": folder.name}
