"""Artifacts for CPUs without the work: of which everything is written but the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dsv3c.targets.cpu import emit


@contextmanager
def unbuilt() -> Iterator[None]:
    """What is emitted meanwhile has a word in place of each library; no compiler is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "build", lambda spec, level: spec)
        patch.setattr(emit, "compiled_once", lambda levels, built: [])
        patch.setattr(emit, "in_children", _in_this_process)
        patch.setattr(emit, "compile_support", lambda platform, folder, plan: [])
        patch.setattr(emit, "link_library", _write)
        patch.setattr(emit, "find_compiler_for", lambda platform: ["none is needed"])
        yield


def _write(objects: object, level: Any, path: Path) -> None:
    path.write_bytes(b"kernels")


def _in_this_process(jobs: list[Callable[[], object]], *_: object) -> None:
    for job in jobs:
        job()
