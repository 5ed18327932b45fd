from __future__ import annotations

from pathlib import Path

import pytest

from dsv3c.runtime.server.loading import available_bytes, weight_bytes
from tests.runtime.devices.cpu.test_cgroup import UNIFIED, V2_MOUNTS, tree


@pytest.mark.parametrize(("limits", "free"), [({}, 500 << 10), ({"a": 90_000}, 90_000), ({"a/b": 7, "a": 90_000}, 7)])
def test_memory_is_what_control_groups_leave_of_the_systems(limits: dict[str, int], free: int, tmp_path: Path) -> None:
    files = {f"{UNIFIED}/{group}/memory.max": f"{limit}\n" for group, limit in limits.items()}
    files["proc/meminfo"] = "MemTotal: 1000 kB\nMemAvailable: 500 kB\n"
    assert available_bytes(tree(tmp_path, "0::/a/b\n", V2_MOUNTS.format(top="/"), files)) == free


def test_what_nobody_tells_is_not_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    assert weight_bytes(tmp_path) == 0
