"""An archive for an ARM device, run by its own `run.sh` with the emulated Python, which has neither pip nor venv."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dsv3c.compiler import cli
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer
from tests.targets.arm import emulator
from tests.targets.arm.make_root import EMULATOR

PYTHON = f"{EMULATOR} -cpu cortex-a72 -L {emulator.ROOT} {emulator.ROOT / 'usr' / 'bin' / 'python3'}"
VERSION = (emulator.ROOT / "usr" / "bin" / "python3").resolve().name.removeprefix("python")

pytestmark = [pytest.mark.needs("arm", "arm_linker"), pytest.mark.usefixtures("package_index")]


def run(*args: str) -> dict[str, object]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": PYTHON, "PYTHONHOME": str(emulator.ROOT / "usr")}
    done = subprocess.run(args, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, object] = json.loads(done.stdout)
    return report


def test_an_archive_for_arm_runs_by_itself(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    write_checkpoint(tmp_path / "tiny", config)
    write_tokenizer(tmp_path / "tiny", config["vocab_size"])
    target = "arm:cpu=cortex-a72"
    assert cli.run(["compile", str(tmp_path / "tiny"), "-t", target, "-o", str(tmp_path / "model")]) == 0
    assert cli.run(["package", str(tmp_path / "model"), "-o", str(tmp_path / "tiny.tar"), "--python", VERSION]) == 0
    device = tmp_path / "device"
    device.mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "tiny.tar"), "-C", str(device)], check=True)
    command = [str(device / "tiny" / "run.sh"), "-p", "Once upon", "-n", "8", "--temperature", "0", "-j", "2", "--json"]
    first, second = run(*command), run(*command)
    assert first["device"]["machine"] == "aarch64" and first["device"]["level"] == "armv8.0"  # type: ignore[index]
    assert len(first["token_ids"]) == first["new_tokens"] > 0  # type: ignore[arg-type,operator]
    assert first["token_ids"] == second["token_ids"]
