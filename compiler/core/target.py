"""What a target is to the compiler: capabilities that steer the passes, how it plans their graphs and emits kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.runtime.artifact import plan
from dsv3c.runtime.artifact.costs import Cost
from dsv3c.runtime.artifact.dispatches import Table


@dataclass(frozen=True)
class EntryGraph:
    """One function of the artifact: its planned graph, the smallest step it is meant for, and the longest context of a
    token that it is right for."""

    graph: Graph
    min_tokens: int = 1
    max_context: int = plan.NEVER


class FileRange(NamedTuple):
    """Where a tensor lies in the weights file, in bytes."""

    offset: int
    nbytes: int


WriteKernels = Callable[[Path, Callable[[int], None]], None]


@dataclass(frozen=True)
class Planned:
    """What a target makes of the entries while no kernel is built: all that is known without.

    graphs, bounds: what was planned. arena_bytes, buffers, entries, costs: as in the plan of the artifact. recipes: the
    weights by their name in the weights file. kernels: the names of the kernels that entries call, by what the target
    builds them from.
    """

    graphs: Mapping[str, EntryGraph]
    bounds: Mapping[str, int]
    arena_bytes: int
    buffers: tuple[plan.Buffer, ...]
    entries: Mapping[str, plan.Entry]
    recipes: Mapping[str, Value]
    kernels: Mapping[Any, str] = field(default_factory=dict)
    costs: Mapping[str, Cost] | None = None


@dataclass(frozen=True)
class Emission:
    """What a target makes for a plan.

    levels: the manifest's list of kernel libraries. write_kernels(folder, advance) builds the libraries into `folder`,
    calling `advance(n)` as they are made. extras: what `--emit` may ask for besides; each writes its files into the
    artifact's folder, where everything but the manifest's `files` is already written, and may return notes for the
    user. write_graphs(folder, places, model) writes into the artifact's folder what refers to the weights file by
    place, given by tensor name; model: the fields of the config. facts: further entries of the manifest's `target`.
    kernel_files: what the n of write_kernels' `advance(n)` add up to, where that is not one a level. dispatches: how
    kernels are launched, where the plan has to say it; it is read from what was built. checks: by the names of extras,
    what raises for a checkpoint's folder, before any long work, what the extra would find wrong after it.
    sealed(sha256) gives a write_kernels whose libraries name the plan.json they are for; None: they cannot.
    """

    levels: tuple[Mapping[str, Any], ...]
    write_kernels: WriteKernels
    extras: Mapping[str, Callable[[Path], Iterable[str] | None]] = field(default_factory=dict)
    write_graphs: Callable[[Path, Mapping[str, FileRange], Mapping[str, Any]], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    kernel_files: int = 0
    dispatches: Table | None = None
    checks: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    sealed: Callable[[str], WriteKernels] | None = None

    def write_kernels_for(self, written: Path, folder: Path, advance: Callable[[int], None]) -> None:
        """write_kernels for a plan.json that is already written."""
        write = self.write_kernels
        if self.sealed is not None:
            write = self.sealed(hashlib.sha256(written.read_bytes()).hexdigest())
        write(folder, advance)


class Target(Protocol):
    """layout: the packed weight layout; integer_activations: int8 activations meet integer weights.

    An empty layout says that the target hands the graph on to another compiler: weights are not packed and memory is
    not planned. cache_dtypes: of CACHE_DTYPES of compiler/options.py those the cache can have, the one for want of a
    better first.
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

    def plan(self, entries: Mapping[str, EntryGraph], bounds: Mapping[str, int]) -> Planned:
        """The plan of graphs that are all in phase "kernel". Builds no kernel and needs no program besides this one."""

    def emit(self, planned: Planned) -> Emission:
        """The kernels of its own plan. Raises a Dsv3cError for a program that is needed and not there."""

    def build_kernel(self, spec: str, level: str | None, folder: Path) -> None:
        """Build one kernel into `folder`, as an emission builds all. Raises Dsv3cError for what is no spec or level.

        Not asked of a target without a layout. level: None takes the first, or all that are built together.
        """


@runtime_checkable
class CachingTarget(Target, Protocol):
    """A target whose compiled kernels can be kept from one compilation to the next."""

    def caching(self, folder: Path) -> Target:
        """The same, with kernels taken from `folder`, and new ones kept there. What is emitted has the same bytes.

        Raises a Dsv3cError for a folder that cannot be written, and so does emission.
        """
