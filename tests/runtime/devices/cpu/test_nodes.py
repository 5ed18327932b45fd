"""Memory nodes on machines whose files are made up, found alike in Python and C; threads divided among them in C."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from dsv3c.runtime.devices.cpu.cores import nodes_of
from dsv3c.targets.link.platforms import find_c_compiler
from tests.runtime.devices.cpu.test_cores import GARBAGE, NATIVE, siblings, tree

NODE = "sys/devices/system/node/"


def nodes(lists: Mapping[int, str], online: str) -> dict[str, str]:
    files = {f"{NODE}node{number}/cpulist": f"{text}\n" for number, text in lists.items()}
    return {f"{NODE}online": f"{online}\n"} | files


TWO = nodes({0: "0-7,16-23", 1: "8-15,24-31"}, "0-1") | siblings(*((cpu, cpu + 16) for cpu in range(16)))
FOUR = nodes({0: "0-1", 1: "2-3", 2: "4-5", 3: "6-7"}, "0-3")

# Name: the files, the CPUs that the process may use, its nodes with their CPUs.
CASES: dict[str, tuple[Mapping[str, str], Collection[int], Mapping[int, Collection[int]]]] = {
    "two sockets with siblings": (TWO, range(32), {0: [*range(8), *range(16, 24)], 1: [*range(8, 16), *range(24, 32)]}),
    "two sockets, one of them": (TWO, range(8), {0: range(8)}),
    "two sockets, unequal parts": (TWO, range(4, 16), {0: range(4, 8), 1: range(8, 16)}),
    "four nodes": (FOUR, range(8), {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}),
    "numbers with a gap": (nodes({0: "0", 3: "1"}, "0,3"), range(2), {0: [0], 3: [1]}),
    "a node of memory alone": (nodes({0: "0-1", 1: ""}, "0-1"), range(2), {0: [0, 1]}),
    "a node without its list": (nodes({0: "0-1"}, "0-1"), range(2), {0: [0, 1]}),
    "a node that is off": (nodes({0: "0-1", 1: "2-3"}, "0"), range(2), {0: [0, 1]}),
    "one node": (nodes({0: "0-3"}, "0"), range(4), {0: range(4)}),
    "no files": ({}, range(4), {}),
    "a CPU of no node": (nodes({0: "0-1", 1: "2"}, "0-1"), range(4), {}),
    "a CPU of two nodes": (nodes({0: "0-1", 1: "1-3"}, "0-1"), range(4), {}),
    "more nodes than are divided": (nodes({n: str(n) for n in range(65)}, "0-64"), range(65), {}),
    "as many nodes as are divided": (
        nodes({n: str(n) for n in range(64)}, "0-63"),
        range(64),
        {n: [n] for n in range(64)},
    ),
}
for text in GARBAGE:
    CASES[f"a list of nodes that is none: {text!r}"] = (FOUR | {f"{NODE}online": text}, range(8), {})
    CASES[f"CPUs that are none: {text!r}"] = (FOUR | {f"{NODE}node2/cpulist": text}, range(8), {})


@pytest.mark.parametrize("name", CASES)
def test_nodes_are_found_with_their_cpus(tmp_path: Path, name: str) -> None:
    files, usable, expected = CASES[name]
    assert nodes_of(usable, tree(tmp_path, files)) == {number: set(cpus) for number, cpus in expected.items()}


# Takes folders and, behind each, threads and the CPUs of an affinity. Prints the nodes that are found with their CPUs,
# and in a second line the nodes among which threads are divided, each with its own.
FIND = r"""
#include "nodes.h"
int main(int n, char **a) {
  for (int i = 1; i + 2 < n; i += 3) {
    cores_mask usable = {0};
    static nodes_layout nodes;
    for (char *at = strtok(a[i + 2], ","); at; at = strtok(0, ",")) cores_add(&usable, atoi(at));
    nodes_of(a[i], &usable, &nodes);
    for (int node = 0; node < nodes.count; node++) {
      printf("%d:", nodes.numbers[node]);
      for (int cpu = 0; cpu < CORES_CPUS; cpu++) if (cores_has(&nodes.cpus[node], cpu)) printf("%d,", cpu);
      printf(" ");
    }
    puts("");
    nodes_divide(a[i], &usable, atoi(a[i + 1]), &nodes);
    for (int node = 0; nodes.count > 1 && node < nodes.count; node++)
      printf("%d:%d ", nodes.numbers[node], nodes.first[node + 1] - nodes.first[node]);
    puts("");
  }
}
"""


def found_in_c(tmp_path: Path, machines: Sequence[tuple[Mapping[str, str], Collection[int], int]]) -> list[str]:
    """Two lines for each machine: its files, CPUs, threads."""
    (tmp_path / "main.c").write_text(FIND, encoding="utf-8")
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined"]
    command = [*find_c_compiler(), *flags, f"-I{NATIVE}", str(tmp_path / "main.c"), "-o", str(tmp_path / "main")]
    subprocess.run(command, check=True)
    arguments = [str(tmp_path / "main")]
    for number, (files, usable, threads) in enumerate(machines):
        arguments += [str(tree(tmp_path / str(number), files)), str(threads), ",".join(map(str, usable))]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()


def test_libraries_in_c_find_the_same(tmp_path: Path) -> None:
    lines = found_in_c(tmp_path, [(files, usable, 8) for files, usable, _ in CASES.values()])
    expected = [
        "".join(f"{number}:{''.join(f'{cpu},' for cpu in sorted(cpus))} " for number, cpus in found.items())
        for _, _, found in CASES.values()
    ]
    assert lines[::2] == expected


@pytest.mark.parametrize(
    ("usable", "threads", "divided"),
    [
        (range(32), 16, "0:8 1:8 "),
        (range(32), 5, "0:2 1:3 "),
        (range(4, 16), 12, "0:4 1:8 "),
        (range(4, 16), 6, "0:2 1:4 "),
        (range(32), 1, ""),
        (range(8), 8, ""),
    ],
)
def test_threads_are_divided_in_proportion_to_cores(
    tmp_path: Path, usable: Collection[int], threads: int, divided: str
) -> None:
    assert found_in_c(tmp_path, [(TWO, usable, threads)])[1] == divided
