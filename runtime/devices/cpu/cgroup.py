"""What the control groups of this process leave it of the machine: CPUs and memory, in versions 1 and 2 of Linux.

A group's own limit counts, and that of every group around it. `root` is the folder that holds proc and sys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_NO_LIMIT = 2**60  # version 1 says so with the largest number of pages


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes: the limit of the group with the least room, and what can still be taken before it is met."""

    limit: int
    free: int


def cpu_limit(root: Path = ROOT) -> int | None:
    """Whole CPUs of the smallest quota, at least 1; None where there is none."""
    quotas = [*map(_quota_v2, _groups(root, "")), *map(_quota_v1, _groups(root, "cpu"))]
    found = [quota // period for quota, period in filter(None, quotas) if quota > 0 and period > 0]
    return max(1, min(found)) if found else None


def memory_limit(root: Path = ROOT) -> MemoryLimit | None:
    """The limit that leaves the least; None where there is none."""
    names = {"": ("memory.max", "memory.current", "inactive_file")}
    names["memory"] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limits = [_memory(folder, *files) for kind, files in names.items() for folder in _groups(root, kind)]
    return min((limit for limit in limits if limit is not None), key=lambda limit: limit.free, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group in the hierarchy of a controller ("": version 2), and of those around it."""
    group, mount = _group(root, controller), _mount(root, controller)
    if group is None or mount is None:
        return
    top, point = mount
    below = group.removeprefix(top) if top != "/" and group.startswith(top) else group if top == "/" else ""
    parts = [part for part in below.split("/") if part]
    if ".." in parts:  # a group outside of what is mounted here
        parts = []
    folder = root / point.lstrip("/")
    for count in range(len(parts), -1, -1):
        yield folder.joinpath(*parts[:count])


def _group(root: Path, controller: str) -> str | None:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") and path:
            return path
    return None


def _mount(root: Path, controller: str) -> tuple[str, str] | None:
    """(the group that is mounted, where) of a hierarchy."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        place, _, kind = line.partition(" - ")
        fields, described = place.split(" "), kind.split(" ")
        wanted = described[0] == "cgroup" and controller in described[-1].split(",")
        if len(fields) > 4 and (wanted if controller else described[0] == "cgroup2"):
            return fields[3], fields[4]
    return None


def _quota_v2(folder: Path) -> tuple[int, int] | None:
    found = re.match(r"(\d+) (\d+)", _read(folder / "cpu.max"))
    return (int(found[1]), int(found[2])) if found else None


def _quota_v1(folder: Path) -> tuple[int, int] | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None else (quota, period)


def _memory(folder: Path, limit_name: str, used_name: str, reclaimable: str) -> MemoryLimit | None:
    limit, used = _number(folder / limit_name), _number(folder / used_name)
    if limit is None or limit >= _NO_LIMIT:
        return None
    cached = re.search(rf"^{reclaimable} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    taken = (used or 0) - (int(cached[1]) if cached else 0)
    return MemoryLimit(limit, max(0, limit - max(0, taken)))


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
