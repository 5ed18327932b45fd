"""How long a launch takes on cores of two speeds, by tasks a thread: a model of the counter that tasks are taken from.

    python -m tests.bench.model_tasks [--microseconds 300]

1 is work / sum of speeds. Mean and worst over speeds of the slow cores from 0.3 to 0.8, three starts each.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections.abc import Sequence

CORES = ((8, 8), (8, 16), (2, 8), (4, 4))  # fast, slow
TASKS = (1, 4, 8, 16)
START, TURN = 1.0, 0.1  # microseconds: threads begin within the first; each turn at the counter takes the second


def launch(speeds: Sequence[float], tasks_per_thread: int, microseconds: float, starts: random.Random) -> float:
    """Time until the last task ends, in units of the ideal one."""
    tasks = tasks_per_thread * len(speeds)
    task = microseconds * sum(speeds) / tasks
    free = [(starts.random() * START, speed) for speed in speeds]
    heapq.heapify(free)
    for _ in range(tasks):
        at, speed = heapq.heappop(free)
        heapq.heappush(free, (at + TURN + task / speed, speed))
    return max(at for at, _ in free) / microseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--microseconds", type=float, default=300)
    args = parser.parse_args()
    starts = random.Random(0)
    for fast, slow in CORES:
        for tasks in TASKS:
            cores = [[1.0] * fast + [percent / 100] * slow for percent in range(30, 81, 5) for _ in range(3)]
            found = [launch(speeds, tasks, args.microseconds, starts) for speeds in cores]
            print(f"{fast:2} + {slow:2}, {tasks:2} tasks a thread   {statistics.mean(found):.2f}, {max(found):.2f}")


if __name__ == "__main__":
    main()
