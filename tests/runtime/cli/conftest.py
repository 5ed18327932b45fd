"""What tests of commands share: a toy that has a tokenizer and a chat template, and runs without kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3c.runtime import cli
from tests.runtime import toy
from tests.runtime.cli.toy_program import use_toy_device
from tests.runtime.test_model import tokenizer_files

TEMPLATE = "{{ bos_token }}{% for message in messages %}[{{ message.content }}]{% endfor %}"
Run = Callable[..., tuple[str, str]]


def talking_toy(folder: Path, template: str | None = TEMPLATE) -> Path:
    """An artifact whose tokens are single characters, from 0 to _, behind the BOS that its texts begin with."""
    files = tokenizer_files(template)
    config = {**json.loads(files["tokenizer_config__json"]), "add_bos_token": True}
    return toy.write_artifact(folder, **{**files, "tokenizer_config__json": json.dumps(config).encode()})


@pytest.fixture
def talking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_toy_device(monkeypatch.setattr)
    return talking_toy(tmp_path / "talking")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command of the runtime; returns stdout and stderr."""

    def command(*args: object, code: int = 0) -> tuple[str, str]:
        found = cli.run([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert found == code, captured.err
        return captured.out, captured.err

    return command
