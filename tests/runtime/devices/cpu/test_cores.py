"""Threads by default, on machines whose files are made up; the C of the kernel libraries and the native one finds the
same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.devices.cpu import cores
from dsv3c.runtime.devices.cpu.cgroup import cpu_limit
from dsv3c.runtime.devices.cpu.cores import Cores, check_threads, cores_of, default_threads, performance_cpus
from tests.conftest import TESTS

HYBRID = "sys/devices/cpu_core/cpus"
NATIVE = TESTS.parent / "targets" / "cpu" / "native"


def siblings(*groups: Iterable[int], name: str = "core_cpus_list") -> dict[str, str]:
    """The files that tell which CPUs are of one core."""
    lists = {cpu: ",".join(map(str, group)) for group in map(tuple, groups) for cpu in group}
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": f"{text}\n" for cpu, text in lists.items()}


def capacities(*of_cpus: object) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{of_cpus[cpu]}\n" for cpu in range(len(of_cpus))}


PAIRS = [(cpu, cpu + 1) for cpu in range(0, 16, 2)]
INTEL = {HYBRID: "0-15\n", "sys/devices/cpu_atom/cpus": "16-23\n"} | siblings(*PAIRS, *zip(range(16, 24)))
ARM = capacities(446, 446, 446, 446, 1024, 1024, 1024, 1024) | siblings(*zip(range(8)))
DESKTOP = siblings(*((cpu, cpu + 8) for cpu in range(8)))
SERVER = siblings(*((cpu, cpu + 64) for cpu in range(64)), name="thread_siblings_list")  # 32 cores a socket
GARBAGE = [
    *("", "\n", "x", "-1", "0-", "3-2", "0-3,", ",0", "0 - 3", " 0", "+0", "0-8192", "8192", "123456", "0x3"),
    *("0-3/2", "0;1", "999999999999999999999", "0--3", "0-1-2", "٣"),
]

# Name: the files, the CPUs that the process may use, its cores, the CPUs of its performance cores.
CASES: dict[str, tuple[Mapping[str, str], Collection[int], Cores, Collection[int]]] = {
    "hybrid, 8 with siblings and 8 small": (INTEL, range(24), Cores(8, 8), range(16)),
    "hybrid, half of the CPUs": (INTEL, range(8, 20), Cores(4, 4), range(8, 16)),
    "hybrid, one sibling of each": (INTEL, range(0, 24, 2), Cores(8, 4), range(0, 16, 2)),
    "hybrid, the small ones alone": (INTEL, range(16, 24), Cores(8, 0), range(16, 24)),
    "hybrid, without its topology": ({HYBRID: "0-15\n"}, range(24), Cores(16, 8), range(16)),
    "hybrid, a list with gaps": (INTEL | {HYBRID: "0-1,4-5,8-9\n"}, range(24), Cores(3, 13), [0, 1, 4, 5, 8, 9]),
    "ARM, 4 large and 4 small": (ARM, range(8), Cores(4, 4), range(4, 8)),
    "ARM, the small ones alone": (ARM, range(4), Cores(4, 0), range(4)),
    "ARM, three kinds": (capacities(*[325] * 4, *[870] * 3, 1024), range(8), Cores(4, 4), range(4, 8)),
    "ARM, half is too little": (capacities(512, 1024), range(2), Cores(1, 1), [1]),
    "ARM, one kind": (capacities(1024, 1024), range(2), Cores(2, 0), range(2)),
    "ARM, one without a capacity": (capacities(446, 1024) | siblings([2]), range(3), Cores(3, 0), range(3)),
    "ARM, a capacity of nothing": (capacities(0, 1024), range(2), Cores(2, 0), range(2)),
    "ARM, a capacity that is no number": (capacities("many", 1024), range(2), Cores(2, 0), range(2)),
    "ARM, a capacity out of bounds": (capacities(446, 123456), range(2), Cores(2, 0), range(2)),
    "a desktop with siblings": (DESKTOP, range(16), Cores(8, 0), range(16)),
    "a desktop, half of the CPUs": (DESKTOP, [0, 1, 2, 3, 8, 9, 10, 11], Cores(4, 0), [0, 1, 2, 3, 8, 9, 10, 11]),
    "two sockets, the older names": (SERVER, range(128), Cores(64, 0), range(128)),
    "two sockets, one of them": (SERVER, [*range(32), *range(64, 96)], Cores(32, 0), [*range(32), *range(64, 96)]),
    "no files": ({}, range(4), Cores(4, 0), range(4)),
    "a CPU beyond a thousand": (siblings([1500, 4000]), [1500, 4000], Cores(1, 0), [1500, 4000]),
    "a list of siblings without the CPU": (
        siblings([0, 1]) | {"sys/devices/system/cpu/cpu2/topology/core_cpus_list": "0\n"},
        range(3),
        Cores(2, 0),
        range(3),
    ),
}
for text in GARBAGE:
    files = {f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list": text for cpu in (0, 1)}
    CASES[f"a list that is none: {text!r}"] = (ARM | {HYBRID: text}, range(8), Cores(4, 4), range(4, 8))
    CASES[f"siblings that are none: {text!r}"] = (files, range(2), Cores(2, 0), range(2))


def tree(root: Path, files: Mapping[str, str]) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("name", CASES)
def test_cores_are_counted_by_kind(tmp_path: Path, name: str) -> None:
    files, usable, expected, fast = CASES[name]
    assert cores_of(usable, tree(tmp_path, files)) == expected
    assert performance_cpus(usable, tmp_path) == set(fast)


# Takes folders and, behind each, the CPUs of an affinity: prints the cores of both kinds and the performance CPUs.
COUNT = r"""
#include "cores.h"
int main(int n, char **a) {
  for (int i = 1; i + 1 < n; i += 2) {
    cores_mask usable = {0}, fast;
    for (char *at = strtok(a[i + 1], ","); at; at = strtok(0, ",")) cores_add(&usable, atoi(at));
    cores_count found = cores_of(a[i], &usable);
    cores_performance(a[i], &usable, &fast);
    printf("%d %d", found.performance, found.efficiency);
    for (int cpu = 0; cpu < CORES_CPUS; cpu++) if (cores_has(&fast, cpu)) printf(" %d", cpu);
    puts("");
  }
}
"""


def test_libraries_in_c_count_the_same(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.skip("there is no C compiler (cc)")
    source, arguments = tmp_path / "main.c", []
    source.write_text(COUNT, encoding="utf-8")
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined"]
    subprocess.run([compiler, *flags, f"-I{NATIVE}", str(source), "-o", str(tmp_path / "main")], check=True)
    for number, (files, usable, _, _) in enumerate(CASES.values()):
        arguments += [str(tree(tmp_path / str(number), files)), ",".join(map(str, usable))]
    done = subprocess.run([str(tmp_path / "main"), *arguments], capture_output=True, text=True, check=True)
    expected = [[count.performance, count.efficiency, *sorted(fast)] for *_, count, fast in CASES.values()]
    assert [list(map(int, line.split())) for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("first", [True, False], ids=["one CPU", "all CPUs"])
@pytest.mark.parametrize("root", ["", "hybrid"], ids=["this machine", "one performance core"])
def test_the_native_library_takes_as_many_threads(tmp_path: Path, root: str, first: bool) -> None:
    usable = sorted(os.sched_getaffinity(0))
    folder = tree(tmp_path / root, {HYBRID: f"{usable[-1]}\n"}) if root else Path("/")
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "internal.h"\nint main(void) { printf("%d", cpu_threads()); }\n'
    )
    files = [str(tmp_path / "main.c"), *(str(NATIVE / name) for name in ("cpu.c", "error.c"))]
    named = [f'-DSYSTEM_ROOT="{folder if root else ""}"', "-D_GNU_SOURCE", f"-I{NATIVE}"]
    subprocess.run(["cc", "-std=c11", *named, "-o", str(tmp_path / "main"), *files], check=True)
    taken = usable[:1] if first else usable
    os.sched_setaffinity(0, taken)
    try:
        printed = subprocess.check_output([str(tmp_path / "main")])
    finally:
        os.sched_setaffinity(0, usable)
    assert int(printed) == min(cores_of(taken, folder).performance, cpu_limit(folder) or len(taken))


def test_the_default_is_a_thread_a_performance_core_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cores_of(range(24), tree(tmp_path, INTEL))
    monkeypatch.setattr(cores, "usable_cores", lambda: found)
    for quota, expected in ((None, 8), (4, 4), (1, 1), (100, 8)):
        monkeypatch.setattr(cores, "cpu_limit", lambda quota=quota: quota)
        assert check_threads(None) == default_threads() == expected
        assert check_threads(16) == 16  # what the user says goes first
    monkeypatch.setattr(cores, "cpu_limit", lambda: None)
    monkeypatch.setattr(cores, "usable_cores", lambda: Cores(300, 0))
    assert default_threads() == cores.THREADS_LIMIT


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"hw.perflevel0.physicalcpu": "4", "hw.perflevel1.physicalcpu": "6", "hw.physicalcpu": "10"}, Cores(4, 6)),
        ({"hw.physicalcpu": "8"}, Cores(8, 0)),
    ],
)
def test_macos_tells_cores_by_level(told: dict[str, str], expected: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.sys, "platform", "darwin")
    monkeypatch.setattr(cores, "sysctl", lambda names: {name: told[name] for name in names if name in told})
    assert cores.usable_cores() == expected


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 100_000])
def test_threads_invalid(threads: object) -> None:
    with pytest.raises(errors.ThreadsInvalid):
        check_threads(threads)  # type: ignore[arg-type]


def test_the_limit_of_threads_is_the_pools() -> None:
    source = (TESTS.parent / "targets" / "cpu" / "threadpool.c").read_text(encoding="utf-8")
    limit = re.search(r"MAX_THREADS = (\d+)", source)
    assert limit is not None and int(limit[1]) == cores.THREADS_LIMIT
