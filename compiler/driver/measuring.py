"""Artifacts measured where they are compiled: in which kernels, against which reference.

What compiles is handed in, since compiling measures, and measuring compiles references.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dsv3c import targets
from dsv3c.compiler.checkpoint.gguf import is_gguf
from dsv3c.compiler.checkpoint.origin import model_name
from dsv3c.compiler.checkpoint.sides import usable_tokenizer
from dsv3c.compiler.driver import text_files
from dsv3c.compiler.driver.workplace import scratch
from dsv3c.compiler.errors import NoLocalTargetError
from dsv3c.compiler.options import CompileOptions, Lora
from dsv3c.runtime.artifact.artifact import MANIFEST, Artifact, ArtifactTarget, Level
from dsv3c.runtime.devices.cpu.features import (
    ISA_VARIABLE,
    MACHINES,
    choose_level,
    cpu_flags,
    machine,
    permitted,
    require_machine,
)
from dsv3c.runtime.devices.device import Placement
from dsv3c.runtime.errors import TokenizerMissing
from dsv3c.runtime.measure.quality import evaluate
from dsv3c.runtime.measure.windows import DEFAULT_CONTEXT, Settings, Text, beginning, cut, read_text
from dsv3c.runtime.progress import Progress

REFERENCE = "float32"  # the format that others are compared with
CONFIG = "config.json"

Compile = Callable[[Path, Path | None, CompileOptions, Progress | None], Any]


def local_target() -> str:
    """The target string for this machine's CPU, with the one level of its kernels that would run here. Raises
    NoLocalTargetError."""
    family = next((name for name, known in MACHINES.items() if known == machine()), None)
    if family is None:
        raise NoLocalTargetError(reason=f"no target is for {machine()}")
    flags = cpu_flags()
    levels = [level for level in targets.get(family).levels() if not level.missing(flags) and permitted(level.requires)]
    if not levels:
        raise NoLocalTargetError(reason="this CPU runs none of the kernel levels")
    wanted = os.environ.get(ISA_VARIABLE)
    chosen = wanted if wanted in {level.name for level in levels} else levels[-1].name
    return f"{family}:levels={chosen}"


@contextmanager
def reference(
    path: Path, compile: Compile, progress: Progress | None = None, lora: tuple[Lora, ...] = ()
) -> Iterator[Path]:
    """An artifact itself, or a checkpoint compiled to float32 for this machine's CPU in a temporary folder, with
    adapters in it."""
    if not _is_checkpoint(path):
        yield path
        return
    with scratch("dsv3c-reference") as folder:
        out = folder / f"{model_name(path)}-{REFERENCE}"
        compile(path, out, CompileOptions(target=local_target(), quant=REFERENCE, lora=lora), progress)
        yield out


def adapters_of(against: Path, checkpoint: Path, options: CompileOptions) -> tuple[Lora, ...]:
    """What is merged into a reference: what is into the checkpoint, where it is that. So rounding alone is measured."""
    return options.lora if against.resolve() == checkpoint.resolve() else ()


def reference_name(path: Path) -> str:
    """What a reference is called, of either kind."""
    name = path.resolve().name
    return f"{name} in {REFERENCE}" if _is_checkpoint(path) else name


def _is_checkpoint(path: Path) -> bool:
    return is_gguf(path) or ((path / CONFIG).is_file() and not (path / MANIFEST).exists())


def check(checkpoint: Path, options: CompileOptions) -> None:
    """Before the long work: raises as `check_texts`, and for a target whose artifacts another machine runs, levels that
    this CPU lacks, and a reference that is no model."""
    if options.measure is None:
        return
    check_texts(checkpoint, [options.measure], Settings())
    require_machine(ArtifactTarget(options.target, ()))
    _check_levels(options.target)
    if options.measure_against is not None and not _is_checkpoint(options.measure_against):
        Artifact.open(options.measure_against)


def _check_levels(target: str) -> None:
    """Raises as `choose_level` for kernel levels that would not run here."""
    if targets.parse(target).name in MACHINES:
        levels = targets.configured(target).levels()
        choose_level([Level(level.name, level.requires, level.library) for level in levels], cpu_flags(), os.environ)


def check_texts(checkpoint: Path, paths: Iterable[Path], settings: Settings) -> list[Text]:
    """The texts. Raises TextFileInvalid, TextTooShort, and TokenizerMissing for a checkpoint without one."""
    texts = [read_text(path) for path in paths]
    if usable_tokenizer(checkpoint) is None:
        raise TokenizerMissing(what="measuring")
    tokenizer = text_files.tokenizer_of(checkpoint)
    for text in texts:
        tokens = np.array(tokenizer.encode_plain(text.content), np.int32)
        cut(text, beginning(tokenizer), tokens, settings.context or DEFAULT_CONTEXT, settings)
    return texts


def figures(
    folder: Path, checkpoint: Path, options: CompileOptions, compile: Compile, progress: Progress
) -> dict[str, Any]:
    """What goes into the manifest of the artifact in `folder`, which is loaded as it is: figures of `options.measure`,
    and against `options.measure_against` if there is one."""
    assert options.measure is not None
    texts, against = [options.measure], options.measure_against
    if against is None:
        return evaluate(folder, texts, Settings(), Placement(), progress=progress).to_dict()
    with reference(against, compile, progress, adapters_of(against, checkpoint, options)) as other:
        name = reference_name(against)
        return evaluate(folder, texts, Settings(), Placement(), other, progress, name).to_dict()
