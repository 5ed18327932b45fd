"""The cores that this process may use, and how many threads it starts when nobody says.

Cores of one machine may differ. Linux lists the performance cores of hybrid Intel CPUs, and tells the capacity of each
CPU of ARM machines; where it does neither, all are alike. It lists the CPUs near each memory node too. `root` is the
folder that holds sys.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dsv3c.runtime.devices.cpu.cgroup import ROOT, cpu_limit
from dsv3c.runtime.devices.cpu.features import sysctl
from dsv3c.runtime.errors import RuntimeFault, ThreadsInvalid

THREADS_LIMIT = 256  # of the thread pool in a kernel library
NUMA = ("auto", "off")  # divide threads and weights among memory nodes, or not
_CPUS_LIMIT = 8192  # of Linux
_RANGE = "([0-9]{1,5})(?:-([0-9]{1,5}))?"
_HYBRID = "sys/devices/cpu_core/cpus"
_CPU = "sys/devices/system/cpu/cpu{}"
_SIBLINGS = ("topology/core_cpus_list", "topology/thread_siblings_list")  # the second is the older name
_NODES = "sys/devices/system/node"
_NODES_LIMIT = 64  # of the thread pool
_APPLE_KINDS = ("hw.perflevel0.physicalcpu", "hw.perflevel1.physicalcpu")


class NumaInvalid(RuntimeFault):
    message = "numa is {value!r}, it must be one of {known}"
    hint = "leave it out to divide threads and weights among the memory nodes of the machine, if it has several"


@dataclass(frozen=True)
class Cores:
    """Physical cores that this process may use. Those of a machine that knows no kinds are performance cores."""

    performance: int
    efficiency: int


def usable_cores() -> Cores:
    return _apple_cores() if sys.platform == "darwin" else cores_of(usable_cpus())


def cores_of(usable: Collection[int], root: Path = ROOT) -> Cores:
    """The cores of some CPUs, the logical ones that Linux numbers."""
    fast = performance_cpus(usable, root)
    return Cores(len({_core_of(cpu, root) for cpu in fast}), len({_core_of(cpu, root) for cpu in set(usable) - fast}))


def performance_cpus(usable: Collection[int], root: Path = ROOT) -> frozenset[int]:
    """Those of `usable` that performance cores have; all, where they are of one kind or the system does not tell."""
    listed = _listed(root / _HYBRID)
    fast = _capable(usable, root) if listed is None else listed.intersection(usable)
    return fast or frozenset(usable)


def usable_nodes() -> Mapping[int, frozenset[int]]:
    """Memory nodes of this machine, see `nodes_of`."""
    return nodes_of(usable_cpus())


def nodes_of(usable: Collection[int], root: Path = ROOT) -> Mapping[int, frozenset[int]]:
    """Nodes by the system's numbers, with those of the `usable` CPUs that are near them; nodes without such are left
    out. Empty where the system does not tell, has more than threads are divided among, or leaves a CPU out or names it
    twice."""
    online = sorted(_listed(root / _NODES / "online") or ())
    listed = {number: _listed(root / _NODES / f"node{number}" / "cpulist") or frozenset() for number in online}
    found = {number: cpus.intersection(usable) for number, cpus in listed.items() if cpus.intersection(usable)}
    named = [cpu for near in found.values() for cpu in near]
    return found if sorted(named) == sorted(set(usable)) and len(found) <= _NODES_LIMIT else {}


def default_threads() -> int:
    """One a performance core that this process may use, fewer where its control group's quota is less: SMT siblings
    share the vector units and only add traffic, efficiency cores have slower ones."""
    return max(1, min(usable_cores().performance, cpu_limit() or THREADS_LIMIT, THREADS_LIMIT))


def check_threads(threads: int | None) -> int:
    """The number of threads to use. Raises ThreadsInvalid."""
    if threads is None:
        return default_threads()
    if type(threads) is not int or not 1 <= threads <= THREADS_LIMIT:
        raise ThreadsInvalid(value=threads, limit=THREADS_LIMIT)
    return threads


def check_numa(numa: str) -> str:
    """One of NUMA. Raises NumaInvalid."""
    if type(numa) is not str or numa not in NUMA:
        raise NumaInvalid(value=numa, known=", ".join(NUMA))
    return numa


def usable_cpus() -> Collection[int]:
    """Numbers of the CPUs that this process may run on; all of them where the system has no affinity."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _apple_cores() -> Cores:
    """By level of performance, the first the fastest; Macs with one kind of core have no levels."""
    found = sysctl((*_APPLE_KINDS, "hw.physicalcpu"))
    fast, slow = (_number(found.get(name, "")) for name in _APPLE_KINDS)
    return Cores(fast, slow) if fast else Cores(_number(found.get("hw.physicalcpu", "")) or os.cpu_count() or 1, 0)


def _capable(usable: Collection[int], root: Path) -> frozenset[int]:
    """CPUs with more than half of the largest capacity; none where not all tell theirs."""
    capacities = {cpu: _number(_first_line(root / _CPU.format(cpu) / "cpu_capacity")) for cpu in usable}
    largest = max(capacities.values(), default=0)
    if not all(capacities.values()):
        return frozenset()
    return frozenset(cpu for cpu, capacity in capacities.items() if 2 * capacity > largest)


def _core_of(cpu: int, root: Path) -> int:
    """The first CPU of the core that `cpu` belongs to; the CPU itself where the system does not tell."""
    for name in _SIBLINGS:
        siblings = _listed(root / _CPU.format(cpu) / name)
        if siblings is not None and cpu in siblings:
            return min(siblings)
    return cpu


def _listed(path: Path) -> frozenset[int] | None:
    """The CPUs that a file lists ("0-7,16"); None where there is none or it is not such a list."""
    text = _first_line(path)
    if re.fullmatch(f"{_RANGE}(?:,{_RANGE})*", text) is None:
        return None
    ranges = [(int(first), int(last or first)) for first, last in re.findall(_RANGE, text)]
    if any(not first <= last < _CPUS_LIMIT for first, last in ranges):
        return None
    return frozenset(cpu for first, last in ranges for cpu in range(first, last + 1))


def _number(text: str) -> int:
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and int(text) < _CPUS_LIMIT else 0


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""
