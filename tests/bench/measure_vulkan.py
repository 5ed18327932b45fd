"""What a step costs beside its kernels on a Vulkan device: recording, replaying, grids.

    python -m tests.bench.measure_vulkan ARTIFACT [DEVICE]

Best of many single tokens. "replayed" is a step as it runs; "recording" is what making its command buffer takes, once;
"empty grids" replays it without a workgroup; "empty" submits and waits for a command buffer without launches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices.vulkan.device import VulkanDevice
from dsv3c.runtime.engine.session import Session

REPETITIONS = 50


def best(work: Callable[[], object]) -> float:
    """Microseconds."""
    work()
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) * 1e6


def measure(artifact: Artifact, chosen: str | None) -> None:
    device = VulkanDevice(artifact, 64, chosen)
    session = Session(artifact.plan, device, artifact.manifest.vocab_size)
    session.step([3], [0], [0], [[0]], [0])
    steps, gpu = device._steps["decode"], device._gpu
    launches = steps.launches(1, 1)

    empty = gpu.commands()
    gpu.vk.vkBeginCommandBuffer(empty, gpu.vk.VkCommandBufferBeginInfo())
    gpu.vk.vkEndCommandBuffer(empty)
    submission = gpu.submission(empty)
    replayed = best(lambda: device.run("decode"))
    recording = best(lambda: gpu.discard(device._recorder.record(launches)))
    kernels = min(device.run_timed("decode").sum() for _ in range(5)) * 1e6
    count = len(launches)
    device._grids[:] = 0
    (known,) = device._recorded.values()
    idle = best(lambda: gpu.submit(known, "nothing"))
    print(f"{gpu.name}: decode of one token, {count} dispatches, {sum(item.barrier for item in launches)} barriers")
    print(f"replayed       {replayed:9.1f} us   {replayed / count:6.1f} us a dispatch")
    print(f"recording      {recording:9.1f} us   {recording / count:6.1f} us a dispatch")
    print(f"kernels        {kernels:9.1f} us   by timestamps, one after the other")
    print(f"empty grids    {idle:9.1f} us   {idle / count:6.1f} us a dispatch")
    print(f"grids          {best(lambda: steps.grids(1, 1, device._grids)):9.1f} us   a step, by numpy")
    print(f"empty          {best(lambda: gpu.submit(submission, 'nothing')):9.1f} us   a submission")
    device.close()


def main() -> None:
    measure(Artifact.open(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    main()
