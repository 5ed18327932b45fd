"""Which CPUs the workers of a kernel library's pool stay on, on machines that are made up."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dsv3c.targets.cpu.library import THREADPOOL
from dsv3c.targets.link.platforms import find_c_compiler
from tests.waiting import PATIENCE

# The program's own calls of the system take the place of those of the C library: the affinity is made up, and what a
# thread binds itself to is printed. Prints for each run the threads, the tasks and the CPUs of each worker that binds
# itself.
PROGRAM = r"""
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
typedef struct { void *sync; int32_t num_task; } Env;
extern int (*__TVMBackendParallelLaunch)(int (*)(int, Env *, void *), void *, int);
extern int dsv3c_threads(int);
static int cpus, refused;
int sched_getaffinity(pid_t thread, size_t size, cpu_set_t *set) {
  memset(set, 0, size);
  for (int cpu = 0; cpu < cpus; cpu++) CPU_SET_S(cpu, size, set);
  return 0;
}
int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *set) {
  char line[256] = "";
  for (int cpu = 0; cpu < cpus; cpu++) if (CPU_ISSET_S(cpu, size, set)) sprintf(line + strlen(line), " %d", cpu);
  if (thread || gettid() == getpid()) strcat(line, " (not a worker)");
  strcat(line, "\n");
  if (write(1, line, strlen(line)) < 0) return -1;
  errno = EPERM;
  return refused ? -1 : 0;
}
static int note(int task, Env *env, void *tasks) { return task == 0 ? *(int *)tasks = env->num_task, 0 : 0; }
static int run(int threads) {
  int used = dsv3c_threads(threads), tasks = 0, failed = __TVMBackendParallelLaunch(note, &tasks, 0);
  dsv3c_threads(1);  // ends when all workers have ended
  dprintf(1, "%d threads, %d tasks\n", used, tasks);
  return failed;
}
int main(int n, char **a) {
  cpus = atoi(a[1]);
  refused = atoi(a[2]);
  for (int i = 3; i < n; i++) if (run(atoi(a[i]))) return 1;
  cpus = 2;  // a child has other CPUs
  pid_t child = fork();
  if (child == 0) _exit(run(2));
  int status;
  waitpid(child, &status, 0);
  return status;
}
"""

HYBRID = {"cpu_core/cpus": "0-3\n"} | {
    f"system/cpu/cpu{cpu}/topology/core_cpus_list": f"{cpu & ~1}-{cpu | 1}\n" for cpu in range(4)
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for name, text in HYBRID.items():
        path = folder / "hybrid" / "sys" / "devices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "main.c").write_text(PROGRAM)
    for root in ("hybrid", "nothing"):
        flags = ["-O1", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-w", f'-DSYSTEM_ROOT="{folder / root}"']
        files = [str(folder / "main.c"), str(THREADPOOL)]
        subprocess.run([*find_c_compiler(), *flags, "-o", str(folder / f"on-{root}"), *files], check=True)
    return folder


def runs(program: Path, cpus: int, threads: Sequence[int], refused: bool = False) -> list[str]:
    """What the runs with these numbers of threads print, and that of a child."""
    command = [str(program), str(cpus), str(int(refused)), *map(str, threads)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.splitlines()


BOUND = " 0 1 2 3"  # both cores with both of their CPUs
ALONE = "2 threads, 8 tasks"  # of a child with the CPUs of one core, all alike


def test_workers_stay_on_performance_cores_where_these_are_enough(program: Path) -> None:
    two = [BOUND, "2 threads, 8 tasks"]
    assert runs(program / "on-hybrid", 8, [0]) == [*two, ALONE]
    assert runs(program / "on-hybrid", 8, [2, 3, 2]) == [*two, "3 threads, 48 tasks", *two, ALONE]
    assert runs(program / "on-hybrid", 8, [2], refused=True) == [*two, ALONE]


def test_tasks_are_smaller_where_threads_have_cores_of_both_kinds(program: Path) -> None:
    assert runs(program / "on-hybrid", 8, [6]) == ["6 threads, 96 tasks", ALONE]


def test_nobody_is_bound_where_all_cores_are_alike(program: Path) -> None:
    assert runs(program / "on-nothing", 8, [0, 4]) == ["8 threads, 32 tasks", "4 threads, 16 tasks", ALONE]
    assert runs(program / "on-hybrid", 4, [0]) == ["2 threads, 8 tasks", ALONE]


def test_the_caller_keeps_its_affinity(program: Path) -> None:
    assert not any("not a worker" in line for line in runs(program / "on-hybrid", 8, [0, 2, 4]))
