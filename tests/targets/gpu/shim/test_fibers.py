"""The CPU shim itself: what is right runs in every order, and each mistake it is there for ends the launch."""

import numpy as np
import pytest

from tests.targets.gpu.shim.library import ORDERS, ShimFault
from tests.targets.gpu.shim.metal import barriers, kernels, metal_library, parameters

THREADS = 128
KERNEL = """
kernel void {name}(  device int* x [[ buffer(0) ]],
  device int* y [[ buffer(1) ]],
  uint2 blockIdx [[threadgroup_position_in_grid]],
  uint2 threadIdx [[thread_position_in_threadgroup]]
) {{
  int i = (int)threadIdx.x;
{body}}}
"""
BODIES = {
    # Each thread gets what its mirror image has: from behind in forward, from before in reverse order.
    "mirror": """
  threadgroup int space[128];
  space[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[(int)blockIdx.x * 128 + i] = space[127 - i] + (int)blockIdx.y;
""",
    "ends_early": """
  if (i < 100) threadgroup_barrier(mem_flags::mem_threadgroup);
""",
    "waits_elsewhere": """
  if (i < 100) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
""",
    "reads_behind": """
  y[i] = x[i + 1];
""",
    "reads_before": """
  y[i] = x[i - 1];
""",
    "writes_behind": """
  y[2 * i] = 1;
""",
    "leaves_array": """
  thread int own[4];
  own[(i & 3) + (i > 126 ? 1 : 0)] = i;
  y[i] = own[0];
""",
    "unwritten": """
  threadgroup int space[128];
  thread int own[2];
  y[i] = space[i] & own[1];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  space[i] = 0;
""",
    "simd": """
  thread int own[1];
  own[0] = simd_sum(x[i]);
  own[0] = own[0] + simd_shuffle_down(x[i], (ushort)1) * (i % 32 != 31);
  y[i] = own[0] + simd_max(x[i]);
""",
    "part_of_simd": """
  if (i != 40) y[i] = simd_sum(x[i]);
""",
    "write_after_read": """
  threadgroup int space[128];
  space[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = space[127 - i];
  space[i] = 0;
""",
    "two_readers": """
  threadgroup int space[1];
  if (i == 0) space[0] = x[3];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i != 64) y[i] = space[0];
  if (i == 1 || i == 126) space[0] = 0;
""",
    "two_writers": """
  threadgroup int space[1];
  if (i == 5 || i == 90) space[0] = x[3];
""",
    "simd_mirror": """
  threadgroup int space[128];
  space[i] = x[i];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = space[i ^ 31];
""",
    "atomic_free": """
  y[0] = y[0] * 2 + (int)blockIdx.x;
""",
}
SOURCE = "".join(
    f"// Function: {name}\n" + KERNEL.format(name=name, body=body.lstrip("\n")) for name, body in BODIES.items()
)


@pytest.fixture(scope="module")
def library(gpp):
    return metal_library(SOURCE)


@pytest.fixture(scope="module")
def strict(gpp):
    """As `library`, with races as faults."""
    return metal_library(SOURCE, races=True)


def run(library, name, order="forward", groups=(1, 1, 1), skipped=0):
    x, y = np.arange(THREADS, dtype=np.int32), np.zeros(groups[0] * THREADS, np.int32)
    library.run(name, [x, y], groups, ORDERS[order], skipped)
    return x, y


@pytest.mark.parametrize("order", ORDERS)
def test_threads_see_each_other_behind_a_barrier(library, order):
    _, y = run(library, "mirror", order, groups=(3, 1, 1))
    np.testing.assert_array_equal(y, np.tile(np.arange(THREADS)[::-1], 3))


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_changes_the_result(library, order):
    (line,) = barriers(kernels(SOURCE)["mirror"])
    _, y = run(library, "mirror", order, skipped=line)
    assert (y != np.arange(THREADS)[::-1]).any()


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_is_a_race(strict, order):
    (line,) = barriers(kernels(SOURCE)["mirror"])
    with pytest.raises(ShimFault, match=r"uses element .* with no barrier between them"):
        run(strict, "mirror", order, skipped=line)
    _, y = run(strict, "mirror", order, groups=(3, 1, 1))
    np.testing.assert_array_equal(y, np.tile(np.arange(THREADS)[::-1], 3))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["write_after_read", "two_readers", "two_writers"])
def test_every_race_in_workgroup_memory_ends_the_launch(strict, name, order):
    with pytest.raises(ShimFault, match="with no barrier between them"):
        run(strict, name, order)


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_of_a_simd_group_orders_its_threads(strict, order):
    _, y = run(strict, "simd_mirror", order)
    np.testing.assert_array_equal(y, np.arange(THREADS).reshape(-1, 32)[:, ::-1].reshape(-1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["ends_early", "waits_elsewhere"])
def test_a_divergent_barrier_ends_the_launch(library, name, order):
    with pytest.raises(ShimFault, match="divergent barrier"):
        run(library, name, order)


def test_a_launch_after_a_fault_runs_as_ever(library):
    with pytest.raises(ShimFault):
        run(library, "ends_early")
    _, y = run(library, "mirror")
    np.testing.assert_array_equal(y, np.arange(THREADS)[::-1])


@pytest.mark.parametrize(
    "name, order, place",
    [
        ("reads_behind", "forward", r"thread 127: byte 512 of argument 0, which has 512"),
        ("reads_before", "reverse", r"thread 0: byte -4 of argument 0, which has 512"),
        ("writes_behind", "forward", r"thread 64: byte 512 of argument 1, which has 512"),
        ("leaves_array", "forward", r"thread 127: index 4 of an array of 4"),
    ],
)
def test_an_access_outside_of_memory_ends_the_launch_and_says_where(library, name, order, place):
    with pytest.raises(ShimFault, match=place):
        run(library, name, order)


def test_unwritten_memory_is_poison_in_every_workgroup(library):
    _, y = run(library, "unwritten", groups=(2, 1, 1))
    np.testing.assert_array_equal(y[:THREADS], -1)


@pytest.mark.parametrize("order", ORDERS)
def test_simd_groups_of_32_exchange_values(library, order):
    x, y = run(library, "simd", order)
    groups = x.reshape(-1, 32)
    down = np.pad(groups[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_array_equal(y.reshape(-1, 32), groups.sum(1)[:, None] + down + groups.max(1)[:, None])


def test_a_simd_operation_without_one_of_its_threads_ends_the_launch(library):
    with pytest.raises(ShimFault, match="divergent barrier"):
        run(library, "part_of_simd")


def test_workgroups_come_in_the_order_that_is_asked_for(library):
    results = {order: int(run(library, "atomic_free", order, groups=(4, 1, 1))[1][0]) for order in ORDERS}
    assert len(set(results.values())) == 3


def test_parameters_are_read_from_the_text():
    assert parameters(kernels(SOURCE)["mirror"]) == [
        ("device int*", "x", "buffer", "0"),
        ("device int*", "y", "buffer", "1"),
        ("uint2", "blockIdx", "threadgroup_position_in_grid", None),
        ("uint2", "threadIdx", "thread_position_in_threadgroup", None),
    ]
