"""The one command that repeats what failed of a compilation: a pass on its dump, or a kernel at its level.

It is added to the error as a note, which the command line prints behind the message.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv3c.compiler.core.blame import failed_kernel
from dsv3c.compiler.core.ir import Graph
from dsv3c.compiler.core.rewrite import Pass
from dsv3c.compiler.driver.named_passes import spelled
from dsv3c.compiler.errors import is_fault


@contextmanager
def telling_pass(item: Pass, graph: Graph, target: str) -> Iterator[None]:
    """A fault inside gets the command that runs `item` again on `graph`, whose dump stays in a folder for temporary
    files."""
    try:
        yield
    except Exception as error:
        if is_fault(error):
            _note_pass(error, item, graph, target)
        raise


@contextmanager
def telling_kernel(target: str) -> Iterator[None]:
    """A fault inside that is a kernel's gets the command that builds this kernel alone."""
    try:
        yield
    except Exception as error:
        if (failed := failed_kernel(error)) is not None:
            level = ["--level", failed.level] if failed.level else []
            _add_command(error, "dsv3c.compiler.kernel", failed.spec, "--target", target, *level)
        raise


def _note_pass(error: Exception, item: Pass, graph: Graph, target: str) -> None:
    try:
        path = Path(tempfile.mkdtemp(prefix="dsv3c-"), f"{graph.name}-before-{item.name}.txt")
        path.write_text(f"# {graph.name} before {item.name}\n{graph}\n", encoding="utf-8")
    except OSError:
        return  # what failed matters more than that the disk is full
    _add_command(error, "dsv3c.compiler.opt", str(path), "--pass", spelled(item), "--target", target)


def _add_command(error: Exception, module: str, *arguments: str) -> None:
    """Note how to run a module of ours, as one line for a shell."""
    error.add_note(f"to repeat it: {shlex.join([sys.executable, '-m', module, *arguments])}")
