"""What a target is to the compiler: capabilities that steer the passes, and how it emits a planned graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.formats.table import WeightFormat


@dataclass(frozen=True)
class Entry:
    """One function of the artifact: its planned graph, and the smallest step it is meant for."""

    graph: Graph
    min_tokens: int = 1


class Place(NamedTuple):
    """Where a tensor lies in the weights file, in bytes."""

    offset: int
    nbytes: int


WriteKernels = Callable[[Path, Callable[[int], None]], None]


@dataclass(frozen=True)
class Emission:
    """What a target made of the entries.

    plan: content of plan.json but for what the compiler knows itself (see pipeline). recipes: the weights by their name
    in the weights file. levels: the manifest's list of kernel libraries. write_kernels(folder, advance) builds the
    libraries into `folder`, calling `advance(n)` as they are made. extras: what `--emit` may ask for besides; each
    writes its files into the artifact's folder, where everything but the manifest's `files` is already written, and may
    return notes for the user. write_graphs(folder, places, model) writes into the artifact's folder what refers to the
    weights file by place, given by tensor name; model: the fields of the config. facts: further entries of the
    manifest's `target`. kernel_files: what the n of write_kernels' `advance(n)` add up to, where that is not one a
    level. require_tools() raises a Dsv3cError for a program that write_kernels needs and that is not there; emitting
    itself needs none, so that planning needs none. checks: by the names of extras, what raises for a checkpoint's
    folder, before any long work, what the extra would find wrong after it. sealed(sha256) gives a write_kernels whose
    libraries name the plan.json they are for; None: they cannot.
    """

    plan: Mapping[str, Any]
    recipes: Mapping[str, Value]
    levels: tuple[Mapping[str, Any], ...]
    write_kernels: WriteKernels
    extras: Mapping[str, Callable[[Path], Iterable[str] | None]] = field(default_factory=dict)
    write_graphs: Callable[[Path, Mapping[str, Place], Mapping[str, Any]], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    kernel_files: int = 0
    require_tools: Callable[[], object] = lambda: None
    checks: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    sealed: Callable[[str], WriteKernels] | None = None

    def write_kernels_for(self, plan: Path, folder: Path, advance: Callable[[int], None]) -> None:
        """write_kernels for a plan.json that is already written."""
        write = self.write_kernels
        if self.sealed is not None:
            write = self.sealed(hashlib.sha256(plan.read_bytes()).hexdigest())
        write(folder, advance)


class Target(Protocol):
    """layout: the packed weight layout; integer_activations: int8 activations meet integer weights.

    An empty layout says that the target hands the graph on to another compiler: weights are not packed and memory is
    not planned. cache_dtypes: element types the cache can have, the one for want of a better first.
    """

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> str: ...

    @property
    def integer_activations(self) -> bool: ...

    @property
    def cache_dtypes(self) -> tuple[str, ...]: ...

    def supports(self, format: WeightFormat, op: str) -> bool:
        """Whether the operation `op` of the IR can have a weight of that format."""

    def configured(self, options: Mapping[str, str]) -> Target:
        """The target as the options of the target string want it. Raises Dsv3cError for a value that is not known."""

    def scratch_bytes(self, value: Value, bounds: Mapping[str, int]) -> int:
        """Working memory the kernel of `value` wants from the arena."""

    def emit(self, entries: Mapping[str, Entry], bounds: Mapping[str, int]) -> Emission:
        """Kernels and plan for planned graphs, all in phase "kernel". Needs no program besides this one."""
