"""Limits of control groups, read from made up file systems; the C of the kernel libraries reads the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from dsv3c.runtime.devices.cpu import cgroup
from dsv3c.runtime.measure import machine
from tests.conftest import TESTS

V1 = "12:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n"
V1_MOUNTS = """\
30 25 0:26 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""
V2_MOUNTS = "30 25 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
CPU, MEMORY, UNIFIED = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory", "sys/fs/cgroup"


def tree(root: Path, group: str, mounts: str, files: Mapping[str, str]) -> Path:
    every = {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}
    for name, text in every.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder: str, quota: int, period: int = 100000) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


CASES: dict[str, tuple[str, str, dict[str, str], int | None]] = {
    "v2": ("0::/app\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/app/cpu.max": "250000 100000\n"}, 2),
    "v2, none": ("0::/app\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/app/cpu.max": "max 100000\n"}, None),
    "v2, below one": ("0::/app\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/app/cpu.max": "50000 100000\n"}, 1),
    "v2, in a container": ("0::/\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/cpu.max": "400000 100000\n"}, 4),
    "v2, the group around is smaller": (
        "0::/a/b/c\n",
        V2_MOUNTS.format(top="/"),
        {f"{UNIFIED}/a/cpu.max": "300000 100000\n", f"{UNIFIED}/a/b/c/cpu.max": "800000 100000\n"},
        3,
    ),
    "v2, a group beside what is mounted": (
        "0::/../other\n",
        V2_MOUNTS.format(top="/"),
        {f"{UNIFIED}/cpu.max": "200000 100000\n"},
        2,
    ),
    "v1": (V1, V1_MOUNTS.format(top="/"), v1(f"{CPU}/docker/abc", 300000), 3),
    "v1, none": (V1, V1_MOUNTS.format(top="/"), v1(f"{CPU}/docker/abc", -1), None),
    "v1, mounted from its group on": (V1, V1_MOUNTS.format(top="/docker/abc"), v1(CPU, 450000, 150000), 3),
    "v1, the group around is smaller": (
        V1,
        V1_MOUNTS.format(top="/"),
        v1(f"{CPU}/docker/abc", 800000) | v1(f"{CPU}/docker", 200000),
        2,
    ),
    "damaged": ("0::/app\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/app/cpu.max": "100000\n"}, None),
    "no period": ("0::/app\n", V2_MOUNTS.format(top="/"), {f"{UNIFIED}/app/cpu.max": "100000 0\n"}, None),
    "no control groups": ("", "", {}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_quota_counts(tmp_path: Path, name: str) -> None:
    *files, expected = CASES[name]
    assert cgroup.cpu_limit(tree(tmp_path, *files)) == expected


def test_kernel_libraries_read_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler (cc)")
    source = tmp_path / "main.c"
    source.write_text(
        '#include "quota.h"\n'
        'int main(int n, char **a) { for (int i = 1; i < n; i++) printf("%d ", quota_cpus(a[i])); }\n'
    )
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined"]
    include = TESTS.parent / "targets" / "cpu" / "native"
    subprocess.run([compiler, *flags, f"-I{include}", str(source), "-o", str(tmp_path / "main")], check=True)
    roots = [str(tree(tmp_path / name, *files)) for name, (*files, _) in CASES.items()]
    done = subprocess.run([str(tmp_path / "main"), *roots], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected or 0) for *_, expected in CASES.values()]


def test_memory_is_that_of_the_group_with_the_least_room(tmp_path: Path) -> None:
    group = "0::/a/b\n"
    files = {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        f"{UNIFIED}/a/memory.max": "4000000000\n",
        f"{UNIFIED}/a/memory.current": "3500000000\n",
        f"{UNIFIED}/a/memory.stat": "anon 1\ninactive_file 1000000000\n",
        f"{UNIFIED}/a/b/memory.max": "2000000000\n",
        f"{UNIFIED}/a/b/memory.current": "100000000\n",
    }
    found = machine.memory(tree(tmp_path, group, V2_MOUNTS.format(top="/"), files))
    assert (found.total, found.available) == (4000000000, 1500000000)


def test_memory_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable: 32000000 kB\n",
        f"{MEMORY}/docker/abc/memory.limit_in_bytes": "1000000000\n",
        f"{MEMORY}/docker/abc/memory.usage_in_bytes": "1000000000\n",
        f"{MEMORY}/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = machine.memory(tree(tmp_path, V1, V1_MOUNTS.format(top="/"), files))
    assert (found.total, found.available) == (1000000000, 1)  # 0 would say that it is not known


def test_memory_without_a_limit(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\n",
        f"{UNIFIED}/memory.max": "max\n",
    }
    found = machine.memory(tree(tmp_path, "0::/\n", V2_MOUNTS.format(top="/"), files))
    assert (found.total, found.available) == (1024000, 512000)
