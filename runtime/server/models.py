"""The models that are served, by name: loaded when one is asked for, unloaded when nobody needs it or memory is short.

All of it is used by one event loop; loading and closing run in threads of their own, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dsv3c.runtime import errors
from dsv3c.runtime.artifact.artifact import MANIFEST
from dsv3c.runtime.artifact.strict_json import quote
from dsv3c.runtime.errors import RuntimeFault
from dsv3c.runtime.server.admission import Admission
from dsv3c.runtime.server.errors import Ending, MemoryShort, ModelFailed, ModelUnknown
from dsv3c.runtime.server.loading import available_bytes, load, unload, weight_bytes
from dsv3c.runtime.server.settings import Settings
from dsv3c.runtime.text.dialects.dialect import Dialect, dialect_of

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model

log = logging.getLogger(__name__)
_SHORT_OF_MEMORY = (errors.MemoryRefused, errors.DeviceMemoryShort, errors.DeviceMemoryRefused, MemoryError)
_LAST_STEP = 30.0  # seconds
_TICK = 0.25  # seconds between looks for models to unload


@dataclass(eq=False)
class Loaded:
    """A model in memory. leases: who uses it. retired: it is closed when the last of them is gone. broken: what its
    caches hold is not to be relied upon."""

    model: Model
    leases: int = 0
    retired: bool = False
    broken: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @cached_property
    def dialect(self) -> Dialect | None:
        return dialect_of(self.model.tokenizer) if self.model.has_tokenizer else None


@dataclass(eq=False)
class Served:
    """A model by name.

    before: what was loaded last, and is closed or about to be. fault: the class of what broke it last, until it is
    loaded again; faults: how many there were.
    """

    name: str
    folder: Path
    admission: Admission
    created: int
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    before: Loaded | None = None
    used: float = field(default_factory=time.monotonic)
    fault: str | None = None
    faults: int = 0

    @property
    def state(self) -> str:
        if self.loaded is not None:
            return "loaded"
        if self.loading is not None:
            return "loading"
        return "failed" if self.fault else "unloaded"


@dataclass(frozen=True)
class Lease:
    """A model for the length of a request. dialect: how it chats. broke: tells that the device failed under it."""

    served: Served
    model: Model
    dialect: Dialect | None
    broke: Callable[[BaseException], None]


class Models:
    def __init__(self, settings: Settings, load: Callable[[Path, Settings], Model] = load) -> None:
        """load: makes a model of a folder."""
        self.ending = False
        self._settings = settings
        self._load = load
        self._served: dict[str, Served] = {}
        self._one_at_a_time = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        for folder in settings.artifacts:
            self._add(folder)
        self.scan()

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self._served.values()))

    def scan(self) -> None:
        """Look for artifacts that came into the folder of models."""
        folder = self._settings.models
        if folder is None or not folder.is_dir():
            return
        for path in sorted(folder.iterdir()):
            if path.name not in self._served and (path / MANIFEST).is_file():
                self._add(path)

    def find(self, name: str | None) -> Served:
        """By name; without one the first. Raises ModelUnknown."""
        if name is None and self._served:
            return next(iter(self._served.values()))
        if name not in self._served:
            self.scan()
        if name is None or name not in self._served:
            known = ", ".join(sorted(self._served)) or "none"
            raise ModelUnknown(name=quote(name), known=known)
        return self._served[name]

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Lease]:
        """A model that stays loaded for as long as the body runs. Raises ModelUnknown, Ending, MemoryShort,
        ModelFailed."""
        served = self.find(name)
        loaded = await self._ready(served)
        loaded.leases += 1
        try:
            yield Lease(served, loaded.model, loaded.dialect, lambda error: self._broke(served, loaded, error))
        finally:
            loaded.leases -= 1
            served.used = time.monotonic()
            self._close_unused(loaded)

    async def preload(self, name: str | None = None) -> None:
        """Load a model before it is asked for. Raises what loading raises."""
        await self._loading_of(self.find(name))

    async def watch(self) -> None:
        """Unload models that were idle for long; never returns."""
        while True:
            await asyncio.sleep(_TICK)
            idle = self._settings.idle
            for served in self:
                if idle is not None and time.monotonic() - served.used >= idle and _unused(served):
                    log.info("model %s was idle for %g s: unloaded", served.name, idle)
                    self._unload(served)

    async def close(self) -> None:
        """Close all models, after the steps that are under way."""
        self.ending = True
        for served in self:
            if served.loading is not None:
                await asyncio.wait([served.loading])
            self._unload(served)
        # Requests that were cancelled just now leave their models within a step.
        left = [asyncio.create_task(served.before.gone.wait()) for served in self if served.before is not None]
        if left:
            await asyncio.wait(left, timeout=_LAST_STEP)

    def _add(self, folder: Path) -> None:
        name = folder.resolve().name if folder.name in ("", ".", "..") else folder.name
        manifest = folder / MANIFEST
        created = int(manifest.stat().st_mtime) if manifest.is_file() else 0
        if name in self._served:
            name = f"{folder.resolve().parent.name}/{name}"
        admission = Admission(self._settings.max_batch, self._settings.queue)
        self._served[name] = Served(name, folder, admission, created)

    async def _ready(self, served: Served) -> Loaded:
        if self.ending:
            raise Ending()
        while served.loaded is None:
            try:
                await self._loading_of(served)
            except _SHORT_OF_MEMORY:
                raise MemoryShort(name=served.name) from None
            except RuntimeFault as error:
                log.error("model %s cannot be loaded: %s", served.name, error)
                raise ModelFailed() from None
        return served.loaded

    async def _loading_of(self, served: Served) -> Loaded:
        """Whoever waits for it may go away; the others wait on."""
        if served.loaded is not None:
            return served.loaded
        return await asyncio.shield(served.loading or self._start_loading(served))

    def _start_loading(self, served: Served) -> asyncio.Task[Loaded]:
        served.loading = asyncio.create_task(self._bring(served))
        served.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # somebody looked at it
        return served.loading

    async def _bring(self, served: Served) -> Loaded:
        try:
            if served.before is not None:  # two of them may not fit
                await served.before.gone.wait()
            async with self._one_at_a_time:
                await self._make_room(served)
                model = await self._loaded_model(served)
            served.admission.resize(self._batch(model))
            loaded = served.loaded = Loaded(model)
            served.fault, served.used = None, time.monotonic()
            return loaded
        except Exception as error:
            served.fault = type(error).__name__
            raise
        finally:
            served.loading = None

    async def _loaded_model(self, served: Served) -> Model:
        while True:
            try:
                began = time.monotonic()
                model = await asyncio.to_thread(self._load, served.folder, self._settings)
                seconds, batch = time.monotonic() - began, self._batch(model)
                how = "model %s loaded in %.1f s: context %d, %d answers at once"
                log.info(how, served.name, seconds, model.context, batch)
                return model
            except _SHORT_OF_MEMORY as error:
                if not await self._unload_one(served):
                    raise
                log.info("memory is short (%s): trying again", type(error).__name__)

    def _batch(self, model: Model) -> int:
        """Sequences at once; a step of the artifact may hold less than is asked for."""
        return min(self._settings.max_batch, model.artifact.plan.bounds.S)

    async def _make_room(self, served: Served) -> None:
        needed = weight_bytes(served.folder)
        while (free := available_bytes()) is not None and free < needed:
            if not await self._unload_one(served):
                return

    async def _unload_one(self, wanted: Served) -> bool:
        """Unload the model that nobody used for longest. False where all are in use."""
        unused = [served for served in self if served is not wanted and _unused(served)]
        if not unused:
            return False
        oldest = min(unused, key=lambda served: served.used)
        log.info("model %s is unloaded to make room", oldest.name)
        self._unload(oldest)
        await asyncio.wait(self._closing)
        return True

    def _broke(self, served: Served, loaded: Loaded, error: BaseException) -> None:
        """The model is closed when all who are in it have left, then loaded again."""
        loaded.broken = True
        if loaded.retired:
            return
        log.error("model %s failed: %s: %s", served.name, type(error).__name__, error)
        served.fault = type(error).__name__
        served.faults += 1
        self._unload(served)
        if not self.ending:
            self._start_loading(served)

    def _unload(self, served: Served) -> None:
        loaded, served.loaded = served.loaded, None
        if loaded is not None:
            loaded.retired, served.before = True, loaded
            self._close_unused(loaded)

    def _close_unused(self, loaded: Loaded) -> None:
        if loaded.retired and not loaded.leases and not loaded.gone.is_set():
            task = asyncio.create_task(self._close(loaded))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, loaded: Loaded) -> None:
        try:
            await asyncio.to_thread(unload, loaded.model, None if loaded.broken else self._settings.cache_dir)
        finally:
            loaded.gone.set()


def _unused(served: Served) -> bool:
    return served.loaded is not None and not served.loaded.leases
