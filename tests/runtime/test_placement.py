"""What is said of layers that cannot be shared out as asked, before any device is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dsv3c.runtime.artifact.artifact import Artifact
from dsv3c.runtime.devices import split
from dsv3c.runtime.devices.device import Placement, open_device
from dsv3c.runtime.errors import BadPlacement, CannotSplit, ThreadsNotChosen
from tests.runtime import toy


@pytest.fixture
def cpu(tmp_path: Path) -> Artifact:
    return toy.toy_artifact(tmp_path / "cpu")


def for_gpu(artifact: Artifact) -> Artifact:
    """The toy as an artifact of another target, without places to cut it."""
    target = replace(artifact.manifest.target, name="vulkan")
    return replace(artifact, manifest=replace(artifact.manifest, target=target))


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a device was opened")

    monkeypatch.setattr(split, "open_device", opened)


def test_threads_are_not_for_gpus(cpu: Artifact) -> None:
    with pytest.raises(ThreadsNotChosen, match="--threads is 2"):
        open_device(for_gpu(cpu), 64, 2)


def test_layers_of_an_artifact_for_the_cpu_cannot_be_moved(cpu: Artifact) -> None:
    with pytest.raises(BadPlacement, match="runs on the CPU as a whole"):
        split.place(cpu, 64, Placement(gpu_layers=1, cpu_artifact=cpu.folder))


def test_the_other_layers_need_an_artifact(cpu: Artifact) -> None:
    with pytest.raises(BadPlacement, match="who runs the others"):
        split.place(for_gpu(cpu), 64, Placement(gpu_layers=1))


def test_an_artifact_for_the_cpu_needs_a_number_of_layers(cpu: Artifact) -> None:
    with pytest.raises(BadPlacement, match="how many layers"):
        split.place(for_gpu(cpu), 64, Placement(cpu_artifact=cpu.folder))


def test_the_other_artifact_must_be_for_a_cpu(cpu: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Artifact, "open", staticmethod(lambda folder: for_gpu(cpu)))
    with pytest.raises(BadPlacement, match="is for vulkan, not for a CPU"):
        split.place(for_gpu(cpu), 64, Placement(gpu_layers=1, cpu_artifact="other"))


@pytest.mark.parametrize("layers", [0, 1])
def test_plans_that_do_not_say_where_layers_begin(cpu: Artifact, layers: int) -> None:
    with pytest.raises(CannotSplit, match="compile it again"):
        split.place(for_gpu(cpu), 64, Placement(gpu_layers=layers, cpu_artifact=cpu.folder))
