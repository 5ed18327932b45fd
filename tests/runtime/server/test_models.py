"""Models by name: loaded when asked for, unloaded when nobody needs them, never under a request, and after a fault
loaded again. Models are stand-ins here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3c.runtime import errors
from dsv3c.runtime.server import models as module
from dsv3c.runtime.server.errors import Ending, MemoryShort, ModelFailed, ModelUnknown
from dsv3c.runtime.server.models import Models, Served
from dsv3c.runtime.server.settings import Settings
from tests.waiting import PATIENCE


class Disk:
    """Folders of artifacts, and what was done with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen: list[str] = []
        self.faults: dict[str, list[Exception]] = {}
        self.gate = threading.Event()
        self.gate.set()

    def add(self, *names: str) -> tuple[Path, ...]:
        for name in names:
            (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / name / "manifest.json").write_text("{}")
        return tuple(self.root / name for name in names)

    def load(self, folder: Path, settings: Settings) -> Any:
        assert self.gate.wait(PATIENCE)
        self.seen.append(f"load {folder.name}")
        if self.faults.get(folder.name):
            raise self.faults[folder.name].pop()
        plan = SimpleNamespace(bounds=SimpleNamespace(S=8))
        close = lambda: self.seen.append(f"close {folder.name}")  # noqa: E731
        return SimpleNamespace(artifact=SimpleNamespace(plan=plan), context=10, has_tokenizer=False, close=close)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(module, "_TICK", 0.01)
    return Disk(tmp_path)


def run(models: Models, scenario: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        watch = asyncio.create_task(models.watch())
        await scenario()
        watch.cancel()
        await models.close()

    asyncio.run(whole())


async def states(models: Models, wanted: dict[str, str]) -> None:
    """Waits until they are so."""
    async with asyncio.timeout(PATIENCE):
        while {served.name: served.state for served in models} != wanted:
            await asyncio.sleep(0.005)


def test_a_model_is_loaded_when_it_is_asked_for_and_once(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a", "b")), disk.load)

    async def use(name: str | None) -> str:
        async with models.lease(name) as lease:
            await asyncio.sleep(0)
            return lease.served.name

    async def scenario() -> None:
        assert await asyncio.gather(use("b"), use("b"), use("b")) == ["b"] * 3
        assert disk.seen == ["load b"]
        assert await use(None) == "a"  # the first

    run(models, scenario)
    assert disk.seen == ["load b", "load a", "close a", "close b"]


def test_unknown_names_are_refused_and_new_folders_found(disk: Disk) -> None:
    disk.add("a")
    models = Models(Settings(models=disk.root), disk.load)
    with pytest.raises(ModelUnknown, match="there is none named 'b'; served are a"):
        models.find("b")
    for name in ("../a", "/etc", "", "a/../a"):
        with pytest.raises(ModelUnknown):
            models.find(name)
    disk.add("b")
    assert models.find("b").name == "b"


def test_folders_of_one_name_are_told_apart(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("x/m", "y/m")), disk.load)
    assert [served.name for served in models] == ["m", "y/m"]


def test_an_idle_model_is_unloaded_but_not_under_a_request(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a"), idle=0.05), disk.load)

    async def scenario() -> None:
        async with models.lease("a"):
            await asyncio.sleep(0.15)
            assert disk.seen == ["load a"]
        await states(models, {"a": "unloaded"})
        async with models.lease("a"):
            assert disk.seen == ["load a", "close a", "load a"]

    run(models, scenario)


def test_the_longest_unused_model_makes_room(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a", "b", "c", "d")), disk.load)

    async def scenario() -> None:
        async with models.lease("a"):
            for name in ("b", "c"):
                async with models.lease(name):
                    pass
            disk.faults["d"] = [errors.MemoryRefused(bytes=1, what="weights")]
            async with models.lease("d"):
                await states(models, {"a": "loaded", "b": "unloaded", "c": "loaded", "d": "loaded"})

    run(models, scenario)


def test_memory_that_nobody_can_give_is_told(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a", "b")), disk.load)
    disk.faults["b"] = [errors.MemoryRefused(bytes=1, what="weights") for _ in range(3)]

    async def scenario() -> None:
        async with models.lease("a"):
            with pytest.raises(MemoryShort):
                async with models.lease("b"):
                    pass

    run(models, scenario)


def test_weights_that_do_not_fit_beside_others_unload_them_first(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([5, 5, 100])
    monkeypatch.setattr(module, "available_bytes", lambda: next(free))
    monkeypatch.setattr(module, "weight_bytes", lambda folder: 10 if folder.name == "b" else 0)
    models = Models(Settings(artifacts=disk.add("a", "b")), disk.load)

    async def scenario() -> None:
        async with models.lease("a"):
            pass
        async with models.lease("b"):
            assert disk.seen == ["load a", "close a", "load b"]

    run(models, scenario)


def test_a_model_that_broke_is_closed_after_its_last_request_and_loaded_again(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a")), disk.load)
    (served,) = models

    async def scenario() -> None:
        async with models.lease("a") as first, models.lease("a") as second:
            for lease in (first, second):  # both were in the step
                lease.broke(errors.DeviceLost(device="GPU", what="a step"))
            assert (served.fault, served.faults) == ("DeviceLost", 1)
            await asyncio.sleep(0.02)
            assert disk.seen == ["load a"]
        await states(models, {"a": "loaded"})  # by itself
        assert disk.seen == ["load a", "close a", "load a"]
        assert (served.fault, served.faults) == (None, 1)

    run(models, scenario)


def test_a_model_that_cannot_be_loaded_is_tried_again_by_the_next_request(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a")), disk.load)
    disk.faults["a"] = [errors.WeightsInvalid(where="x", reason="y")]

    async def scenario() -> None:
        with pytest.raises(ModelFailed):
            async with models.lease("a"):
                pass
        assert next(iter(models)).state == "failed"
        async with models.lease("a") as lease:
            assert lease.served.fault is None

    run(models, scenario)


def test_who_goes_away_while_a_model_is_loaded_leaves_it_to_others(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a")), disk.load)

    async def use() -> Served:
        async with models.lease("a") as lease:
            return lease.served

    async def scenario() -> None:
        disk.gate.clear()
        first, second = asyncio.create_task(use()), asyncio.create_task(use())
        await asyncio.sleep(0.01)
        first.cancel()
        disk.gate.set()
        assert (await second).name == "a" and first.cancelled()
        assert disk.seen == ["load a"]

    run(models, scenario)


def test_a_server_that_ends_takes_no_requests(disk: Disk) -> None:
    models = Models(Settings(artifacts=disk.add("a")), disk.load)

    async def scenario() -> None:
        models.ending = True
        with pytest.raises(Ending):
            async with models.lease("a"):
                pass

    run(models, scenario)
    assert disk.seen == []
