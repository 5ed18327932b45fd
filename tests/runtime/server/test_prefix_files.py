"""A server's prefix caches on disk: a file for each artifact; what is wrong with one is a warning, never a failure."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest

from dsv3c.runtime import load
from dsv3c.runtime.errors import DeviceLost
from dsv3c.runtime.model import Model
from dsv3c.runtime.server import loading
from dsv3c.runtime.server.models import Models
from dsv3c.runtime.server.prefix_files import restore, save
from dsv3c.runtime.server.settings import Settings
from tests.runtime import toy
from tests.runtime.cli.toy_program import use_toy_device
from tests.runtime.server.conftest import Running, running
from tests.waiting import PATIENCE, until

TEXT = list(range(3, 22))


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Model]:
    use_toy_device(monkeypatch.setattr)
    artifact = toy.write_artifact(tmp_path / "toy")
    return lambda: load(artifact)


def cached_tokens(model: Model) -> int:
    return model.generate(TEXT, max_new_tokens=1).cached_tokens


@pytest.fixture
def folder(start: Callable[[], Model], tmp_path: Path) -> Path:
    """With what a server left that read TEXT."""
    place = tmp_path / "deep" / "caches"
    with start() as model:
        cached_tokens(model)
        save(model, place)
    return place


def test_a_second_start_finds_what_the_first_has_read(start: Callable[[], Model], folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700
    with start() as model:
        restore(model, folder)
        assert cached_tokens(model) == 16


def test_artifacts_have_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    weights = toy.weights_bytes({"scale": np.full(1, 2, np.float32)})
    with load(toy.write_artifact(tmp_path / "other" / "toy", weights__safetensors=weights)) as model:
        restore(model, folder)
        assert cached_tokens(model) == 0
        save(model, folder)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"It was a dark night", None], ids=["empty", "foreign", "damaged"])
def test_a_file_that_cannot_be_used_is_a_warning_and_a_cold_start(
    content: bytes | None, start: Callable[[], Model], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    with start() as model:
        restore(model, folder)
        assert cached_tokens(model) == 0
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "the prefix cache starts empty" in record.getMessage()


def test_what_cannot_be_saved_is_a_warning(
    start: Callable[[], Model], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with start() as model:
        save(model, tmp_path / "file")
    assert "the prefix cache is not saved" in caplog.text


def test_without_a_file_nothing_is_said(
    start: Callable[[], Model], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with start() as model:
        restore(model, tmp_path / "none")
    assert not caplog.records


def ask(server: Running, tokens: int = 1) -> int:
    """How many tokens of the prompt were cached."""
    body = {"prompt": "Once upon a time there was a king", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    response = httpx2.post(f"{server.url}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_server_saves_at_its_end_and_restores_at_its_start(tiny_settings: Settings, tmp_path: Path) -> None:
    settings = replace(tiny_settings, cache_dir=tmp_path / "caches")
    with running(settings) as first:
        assert ask(first) == 0
    with running(settings) as second:
        assert ask(second) > 0


def test_a_server_starts_beside_a_damaged_file(
    tiny_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(tiny_settings, cache_dir=tmp_path)
    with running(settings) as first:
        ask(first)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with running(settings) as second:
        assert ask(second) == 0
    assert "the prefix cache starts empty" in caplog.text
    with running(settings) as third:
        assert ask(third) > 0


def test_what_an_idle_model_has_read_is_there_when_it_is_loaded_again(tiny_settings: Settings, tmp_path: Path) -> None:
    with running(replace(tiny_settings, cache_dir=tmp_path, idle=0.05)) as server:
        ask(server)
        served = server.service.models.find(None)
        until(lambda: served.state == "unloaded")
        assert ask(server) > 0


def test_the_end_waits_for_who_is_still_in_a_model(tiny_settings: Settings, tmp_path: Path) -> None:
    async def scenario() -> None:
        models = Models(replace(tiny_settings, cache_dir=tmp_path))
        async with models.lease(None) as lease:
            ending = asyncio.create_task(models.close())
            await asyncio.sleep(0.05)
            assert not ending.done() and not lease.model.session.closed
        await ending
        assert lease.model.session.closed and list(tmp_path.iterdir())

    asyncio.run(scenario())


def test_of_a_model_that_broke_nothing_is_saved(tiny_settings: Settings, tmp_path: Path) -> None:
    def failing(folder: Path, settings: Settings) -> Model:
        model = loading.load(folder, settings)

        def fail(entry: str) -> None:
            raise DeviceLost(device="tiny", what=entry)

        model.session.device.run = fail  # type: ignore[method-assign]
        return model

    with running(replace(tiny_settings, cache_dir=tmp_path), failing) as server:
        response = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "Once"})
        assert response.status_code == 500
        until(lambda: server.service.models.find(None).loaded)
        assert not list(tmp_path.iterdir())


def test_a_process_that_is_told_to_end_saves_what_it_has_read(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsv3c.runtime", "serve", str(tiny), "--port", "0", "--max-batch", "2"]
    process = subprocess.Popen([*command, "--cache-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(line.split()[-1] for line in process.stderr if "listening on http://" in line)
        body = {"prompt": "Once upon a time there was a king", "max_tokens": 1}
        assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 200
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=PATIENCE)[1]
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "prefixes of 32 tokens saved" in log
    assert [file.suffix for file in tmp_path.iterdir()] == [".prefixes"]
