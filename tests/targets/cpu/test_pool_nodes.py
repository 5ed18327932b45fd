"""How the pool of a kernel library divides launches over weights among memory nodes, on a machine that is made up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dsv3c.targets.cpu.library import THREADPOOL
from dsv3c.targets.link.platforms import find_c_compiler
from tests.waiting import PATIENCE

PROGRAM = Path(__file__).with_name("pool_nodes.c")
LAUNCHES = 20  # of the program
PAGE = 4096


def built(folder: Path, sanitizer: str | None = None) -> Path:
    """The program for a machine of eight cores, four near each of two memories."""
    for number, text in enumerate(("0-3", "4-7")):
        path = folder / f"sys/devices/system/node/node{number}/cpulist"
        path.parent.mkdir(parents=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    (folder / "sys/devices/system/node/online").write_text("0-1\n", encoding="utf-8")
    flags = ["-O1", "-g", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", "-w", f'-DSYSTEM_ROOT="{folder}"']
    flags += [f"-fsanitize={sanitizer}"] if sanitizer else []
    command = [*find_c_compiler(), *flags, "-o", str(folder / "program"), str(PROGRAM), str(THREADPOOL)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and sanitizer:
        pytest.skip(f"this compiler has no {sanitizer} sanitizer")
    assert done.returncode == 0, done.stderr
    return folder / "program"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("nodes"))


def run(program: Path, *arguments: int) -> tuple[int, list[tuple[int, int]], list[int]]:
    """Nodes; how many launches gave each item to each node; where each page was moved."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0"}
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    nodes, items, pages = done.stdout.splitlines()
    taken = [(int(first), int(second)) for first, second in (item.split(",") for item in items.split())]
    assert all(sum(item) == LAUNCHES for item in taken)  # each item once a launch, whoever takes it
    return int(nodes), taken, [int(page) for page in pages.split()]


# Threads, rows of items, segments, blocks, blocks of an item, bytes of a block.
SHAPES = {
    "experts": (4, 3, 8, 12, 1, 2 * PAGE),
    "an item of many blocks": (4, 1, 5, 28, 4, PAGE),
    "a last item that is shorter": (4, 1, 3, 22, 4, PAGE),
    "blocks smaller than a page": (4, 2, 3, 16, 1, 320),
    "one matrix": (6, 1, 1, 48, 1, 3 * PAGE),
    "more threads on one node": (3, 4, 2, 9, 1, PAGE),
    "fewer items than threads": (8, 1, 4, 3, 1, PAGE),
    "more pages than are moved at once": (2, 1, 1, 8, 1, 1250 * PAGE),
}


def node_of(threads: int, items: int, item: int) -> int:
    """The node whose threads are to take an item of a row, by the definition in native/nodes.h."""
    return 0 if item < items * (threads // 2) // threads else 1


@pytest.mark.parametrize("name", SHAPES)
def test_pages_come_to_the_node_that_takes_their_items(program: Path, name: str) -> None:
    threads, rows, segments, blocks, of_item, size = SHAPES[name]
    nodes, taken, pages = run(program, threads, -1, rows, segments, blocks, of_item, size)
    items = -(-blocks // of_item)
    owners = [node_of(threads, items, item % items) for item in range(rows * items)]
    own = sum(counts[owner] for counts, owner in zip(taken, owners, strict=True))
    assert nodes == 2
    if len(taken) >= 4 * threads:  # with fewer, threads often have none left of their node's own
        assert own == sum(map(sum, taken))
    for number, moved in enumerate(pages):
        block = number * PAGE // size % blocks
        assert moved == (1 if node_of(threads, items, block // of_item) else -1)  # all lay on node 0


def test_a_slow_node_is_helped(program: Path) -> None:
    threads, rows, segments, blocks = 4, 1, 1, 16
    fair = run(program, threads, -1, rows, segments, blocks, 1, PAGE)[1]
    helped = run(program, threads, 1, rows, segments, blocks, 1, PAGE)[1]
    upper = [item for item in range(rows * blocks) if item % blocks >= blocks // 2]
    assert sum(fair[item][0] for item in upper) == 0
    assert sum(helped[item][0] for item in upper) > 0.5 * LAUNCHES * len(upper)


def test_no_thread_reads_what_another_writes_meanwhile(tmp_path: Path) -> None:
    run(built(tmp_path, "thread"), 4, -1, 3, 2, 12, 1, PAGE)
