"""What this machine has that decides how a model runs on it. Looks; imports and starts nothing heavy."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dsv3c.runtime.devices.cpu import cgroup, cores
from dsv3c.runtime.devices.cpu import features as cpu_features

# Features that decide how fast a model runs, in the order in which they are shown (names as in /proc/cpuinfo).
FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "amx_tile",
    "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
DISTRIBUTIONS = ("dsv3c", "dsv3c-runtime")  # either has the runtime
PACKAGES = (*DISTRIBUTIONS, "numpy", "apache-tvm-ffi", "tokenizers", "jinja2", "click", "onnxruntime")


@dataclass(frozen=True)
class Cpu:
    """performance_cores, efficiency_cores: physical ones that this process may use. threads: what a model takes by
    default. nodes: the logical cores near each memory, by its number; empty where the system does not tell."""

    model: str
    architecture: str
    performance_cores: int
    efficiency_cores: int
    logical_cores: int
    threads: int
    nodes: Mapping[int, int]
    features: frozenset[str]

    @property
    def physical_cores(self) -> int:
        return self.performance_cores + self.efficiency_cores

    @property
    def notable(self) -> list[str]:
        """The features that matter here, in a fixed order."""
        return [name for name in FEATURES if name in self.features]


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes, those of the control group where they are less; 0 where the system does not tell. huge_pages: the
    mode of transparent huge pages, or ""."""

    total: int
    available: int
    page_size: int
    huge_pages: str


def cpu() -> Cpu:
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    usable = cores.usable_cores()
    return Cpu(
        model=name[1] if name else platform.processor() or "unknown",
        architecture=cpu_features.machine(),
        performance_cores=usable.performance,
        efficiency_cores=usable.efficiency,
        logical_cores=os.cpu_count() or 1,
        threads=cores.default_threads(),
        nodes={number: len(cpus) for number, cpus in cores.usable_nodes().items()},
        features=cpu_features.cpu_flags(),
    )


def memory(root: Path = cgroup.ROOT) -> Memory:
    """root: the folder that holds proc and sys."""
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(root / "proc/meminfo"), re.MULTILINE))
    mode = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    total, available = (int(sizes.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    group = cgroup.memory_limit(root)
    return Memory(
        total=total if group is None else min(total or group.limit, group.limit),
        available=available if group is None else max(1, min(available or group.free, group.free)),
        page_size=os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0,
        huge_pages=mode[1] if mode else "",
    )


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str | None]:
    """Versions of the packages that play a part; None for one that is not installed."""
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_twice() -> bool:
    """Whether the runtime's files belong to two distributions, so that removing one breaks the other."""
    return all(package_version(name) for name in DISTRIBUTIONS)


def _read(path: str | Path) -> str:
    """A file of the system, or "" where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
