"""A tiny model that chats, and servers of it over real sockets. Texts are what random weights say: tests that need a
certain one ask for it with `regex`."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from dsv3c.runtime.model import Model
from dsv3c.runtime.server import loading
from dsv3c.runtime.server.app import build
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.service import Service
from dsv3c.runtime.server.serving import Server, config
from dsv3c.runtime.server.settings import Settings
from tests.checkpoints import tiny_config, write_checkpoint
from tests.shared import once
from tests.waiting import PATIENCE

SPECIAL = ("<b>", "<e>", "<|user|>", "<|assistant|>", "<think>", "</think>")
VOCAB = 320
CONTEXT = 1024
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}{{ eos_token }}"
    "{% else %}<|user|>{{ m.role }}: {{ m.content }}{% endif %}"
    "{% endfor %}<|assistant|>{% if thinking %}<think>{% endif %}"
)


def byte_characters() -> list[str]:
    """How byte-level BPE writes each byte."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(hidden)) for byte in range(256)]


def write_texts(folder: Path, special: tuple[str, ...] = SPECIAL, template: str = TEMPLATE) -> None:
    """A tokenizer with a token a byte and these special ones, and a chat template."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    vocab = {name: number for number, name in enumerate((*special, *byte_characters()))}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": name, **flags} for number, name in enumerate(special)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    config = {"bos_token": special[0], "eos_token": special[1], "chat_template": template}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def compile_tiny(out: Path, special: tuple[str, ...] = SPECIAL, template: str = TEMPLATE) -> Path:
    """An artifact of random weights, for this CPU alone."""
    from dsv3c.compiler.driver.pipeline import compile_checkpoint
    from dsv3c.compiler.options import CompileOptions
    from dsv3c.runtime.devices.cpu.features import cpu_flags
    from dsv3c.targets.x86 import levels

    checkpoint = out.with_name(f"{out.name}-checkpoint")
    config = tiny_config(num_hidden_layers=2, vocab_size=VOCAB, max_position_embeddings=CONTEXT)
    write_checkpoint(checkpoint, config)
    write_texts(checkpoint, special, template)
    usable = [level for level in levels.LEVELS if not level.missing(cpu_flags())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(levels, "LEVELS", tuple(usable[-1:]) or levels.LEVELS)
        compile_checkpoint(checkpoint, out, CompileOptions(target="x86", quant="float32", max_sequences=8))
    return out


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an artifact that chats; its name is that of the model."""
    return once(tmp_path_factory, "served/tiny", compile_tiny)


@dataclass(frozen=True)
class Running:
    """A server that runs in a thread of this process."""

    url: str
    port: int
    service: Service
    server: Server
    loop: asyncio.AbstractEventLoop


async def _serve(server: Server, opened: socket.socket) -> None:
    await server._serve([opened])
    left = asyncio.all_tasks() - {asyncio.current_task()}  # as asyncio.run does
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@dataclass
class Steps:
    """Of models that it loads: how many were made. Each takes `seconds` longer, and all but the first ones wait until
    the gate is open."""

    seconds: float = 0.0
    first: float = math.inf
    made: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def load(self, folder: Path, settings: Settings) -> Model:
        model = loading.load(folder, settings)
        step = model.engine.scheduler.step

        def held() -> None:
            if self.made >= self.first:
                self.gate.wait(PATIENCE)
            time.sleep(self.seconds)
            step()
            self.made += 1

        model.engine.scheduler.step = held  # type: ignore[method-assign]
        return model


@contextmanager
def running(
    settings: Settings, load: Callable[[Path, Settings], Any] | None = None, buffer: int | None = None
) -> Iterator[Running]:
    """On a port that the system chooses. load: instead of loading models. buffer: bytes that the system takes of an
    answer before its client does."""
    models = Models(settings) if load is None else Models(settings, load)
    app: Starlette = build(settings, models)
    server = Server(config(app, settings), models, settings.grace)
    loop = asyncio.new_event_loop()
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        if buffer is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(server, opened)), daemon=True)
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{port}", port, app.state.service, server, loop)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server does not end"
            loop.close()


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """Clients that are told no limit wait for more than the 5 s of httpx2."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("connect", "read", "write", "pool"):
            patch.setattr(httpx2._config.DEFAULT_TIMEOUT_CONFIG, kind, PATIENCE)
        yield


@pytest.fixture(scope="session")
def tiny_settings(tiny: Path) -> Settings:
    return Settings(artifacts=(tiny,), max_batch=4, queue=8, grace=2, ping=0.2)


@pytest.fixture(scope="session")
def served(tiny_settings: Settings) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running(tiny_settings) as server:
        yield server


@pytest.fixture
def serving(tiny_settings: Settings) -> Iterator[Callable[..., Running]]:
    """Servers of a test's own: `serving(max_batch=1)` with fields of Settings."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda **fields: stack.enter_context(running(replace(tiny_settings, **fields)))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A browser, for tests of the page; where there is none they are left out (tests/selection.py)."""
    from tests.runtime.server.browser import chromium

    with chromium() as driver:
        yield driver
