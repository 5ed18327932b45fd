"""The commands one after the other on the bundled model, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import heed_signals
from tests.waiting import PATIENCE, until

COMMAND = [sys.executable, "-c", "from dsv3c.compiler.cli import main; main()"]
PROMPT = "Once upon a time"
GREEDY = ("--temperature", 0)  # the model's own default is to sample

pytestmark = pytest.mark.isa("avx2")


def dsv3c(*args: object, code: int = 0, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        input=stdin,
        env=os.environ | environment,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def compiled(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An int8 artifact and what compiling it printed."""
    out = tmp_path_factory.mktemp("artifacts") / "fairytale"
    return out, dsv3c("compile", bundled_model, "--quant", "int8", "-o", out).stdout


@pytest.fixture(scope="module")
def artifact(compiled: tuple[Path, str]) -> Path:
    return compiled[0]


def test_compile_prints_where_and_what_next(compiled: tuple[Path, str]) -> None:
    out, printed = compiled
    assert printed.startswith(f"built {out}\n")
    assert f'dsv3c generate {out} -p "Once upon a time"' in printed
    assert [path.name for path in out.parent.iterdir()] == [out.name], "nothing else is left beside the artifact"


def test_compile_keeps_what_is_there(bundled_model: Path, artifact: Path) -> None:
    before = (artifact / "manifest.json").read_bytes()
    done = dsv3c("compile", bundled_model, "-o", artifact, code=1)
    assert "exists already" in done.stderr and "--overwrite" in done.stderr
    assert (artifact / "manifest.json").read_bytes() == before


def test_generate_is_the_python_api(artifact: Path) -> None:
    from dsv3c import runtime

    with runtime.load(artifact) as model:
        expected = model.generate(PROMPT, max_new_tokens=20, temperature=0)
    done = dsv3c("generate", artifact, "-p", PROMPT, *GREEDY, "-n", 20)
    assert done.stdout == PROMPT + expected.text + "\n"
    assert "20 tokens at" in done.stderr and "tok/s" in done.stderr

    report = json.loads(
        dsv3c("generate", artifact, "-p", "-", *GREEDY, "-n", 20, "--json", "-j", 1, stdin=PROMPT).stdout
    )
    assert report["text"] == expected.text
    assert tuple(report["token_ids"]) == expected.token_ids
    assert (report["finish_reason"], report["device"]["threads"]) == ("length", 1)


def test_a_seed_gives_the_same_text(artifact: Path) -> None:
    def text(*args: object) -> Any:
        sampled = ("--temperature", 1.2, "--top-k", 50, "--top-p", 0.95, "--min-p", 0.01, "-n", 30, "--json")
        return json.loads(dsv3c("generate", artifact, "-p", PROMPT, *sampled, *args).stdout)

    first = text()
    assert text("--seed", first["seed"])["text"] == first["text"], "the seed that was drawn is told"
    assert text("--seed", first["seed"] + 1)["text"] != first["text"]


def test_stop_text_ends_the_answer(artifact: Path) -> None:
    command = ("generate", artifact, "-p", PROMPT, *GREEDY, "-n", 40, "--json")
    whole = json.loads(dsv3c(*command).stdout)["text"]
    word = whole.split()[5]
    cut = json.loads(dsv3c(*command, "--stop", word).stdout)
    assert cut["text"] == whole[: whole.index(word)]
    assert cut["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--chat", "-p", "hello"], "no chat template"),
        (["-p", "a", "--context", "999999999"], "context"),
        (["-p", "x " * 4000], "the context holds"),
    ],
    ids=["no template", "context too long", "prompt too long"],
)
def test_generate_refuses(artifact: Path, args: list[str], says: str) -> None:
    assert says in dsv3c("generate", artifact, *args, code=1).stderr


def test_a_full_context_is_told(artifact: Path) -> None:
    done = dsv3c("generate", artifact, "-p", PROMPT, "--context", 8, "-n", 20)
    assert "3 tokens at" in done.stderr and "note: the context of 8 tokens is full" in done.stderr


def test_a_checkpoint_is_no_artifact(bundled_model: Path) -> None:
    assert "it is a checkpoint" in dsv3c("generate", bundled_model, "-p", PROMPT, code=1).stderr


def test_an_unknown_kernel_level(artifact: Path) -> None:
    done = dsv3c("generate", artifact, "-p", PROMPT, code=1, DSV3C_ISA="z80")
    assert "x86-64-v3" in done.stderr


def test_verify_finds_one_changed_bit(artifact: Path, tmp_path: Path) -> None:
    assert dsv3c("verify", artifact).stdout.startswith(f"{artifact}: ok, ")
    assert json.loads(dsv3c("verify", artifact, "--json").stdout)["extra"] == []
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    weights = copy / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "weights.safetensors" in dsv3c("verify", copy, code=1).stderr


def test_inspect_tells_parts_and_kernels(artifact: Path) -> None:
    report = json.loads(dsv3c("inspect", artifact, "--json").stdout)
    assert report["quantization"]["weights"] == "int8"
    assert sum(part["nbytes"] for part in report["parts"].values()) <= report["files"]["weights.safetensors"]
    assert report["parts"]["routed experts"]["weights"] == 3 * 16 * 3 * 256 * 128
    bits = 8 * report["parts"]["routed experts"]["nbytes"] / report["parts"]["routed experts"]["weights"]
    assert 8 <= bits < 8.5
    assert set(report["kernel_calls"]) >= {"decode", "prefill", "mtp"}
    text = dsv3c("inspect", artifact).stdout
    assert "bits/weight" in text and "kernel calls of decode" in text and "x86-64-v3" in text
    assert "kB a token, 2048 tokens a sequence at most" in text


def test_inspect_names_what_is_wrong_in_the_manifest(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for key, value in (("quantization", "int8"), ("notes", 5), ("weights", {"parts": {"head": {"nbytes": "1"}}})):
        (copy / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        assert f"manifest.{key}" in dsv3c("inspect", copy, code=1).stderr


def test_plan_is_exact(bundled_model: Path, artifact: Path) -> None:
    plan = json.loads(dsv3c("plan", bundled_model, "--context", 1000, "--json").stdout)
    memory = json.loads((artifact / "manifest.json").read_text())["memory"]
    assert plan["weight_bytes"] == memory["weights_bytes"] == (artifact / "weights.safetensors").stat().st_size
    assert plan["arena_bytes"] == memory["arena_bytes"]
    assert plan["cache_bytes"] == 1008 * memory["cache_bytes_per_token"], "whole pages of 16"

    text = dsv3c("plan", bundled_model, "--quant", "int4").stdout
    assert text.startswith("weights: ") and "int4-g32" in text and "memory to run it" in text
    too_long = dsv3c("plan", bundled_model, "--context", 10**9, code=1).stderr
    assert "context" in too_long


def test_dump_writes_each_graph(bundled_model: Path, tmp_path: Path) -> None:
    graphs = tmp_path / "graphs"
    done = dsv3c("compile", bundled_model, "--to", "fuse-mla", "--dump-to", graphs, "-o", tmp_path / "out")
    assert done.stdout == f"stopped after fuse-mla: no artifact written; the graphs are in {graphs}\n"
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in graphs.glob("decode-00*")) == ["decode-00-trace.txt"]
    assert "mla_absorbed" in next(graphs.glob("decode-*fuse-mla.txt")).read_text()
    assert "fuse-mla" in dsv3c("compile", bundled_model, "--to", "no-such-pass", code=2).stderr


def test_emit_names_the_known_forms_and_leaves_nothing(bundled_model: Path, tmp_path: Path) -> None:
    done = dsv3c("compile", bundled_model, "-o", tmp_path / "out", "--emit", "no-such-form", code=2)
    assert "--emit" in done.stderr and "no-such-form" in done.stderr and "tvm" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupted_compile_leaves_nothing(bundled_model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "compile", str(bundled_model), "-o", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    until(lambda: list(tmp_path.iterdir()))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "interrupted"  # behind the notes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_is_shown_on_a_terminal_only(bundled_model: Path, tmp_path: Path, artifact: Path) -> None:
    assert dsv3c("verify", artifact).stderr == ""
    reader, writer = os.openpty()
    process = subprocess.Popen([*COMMAND, "verify", str(artifact)], stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    shown = b""
    with suppress(OSError):  # of a terminal that nobody writes to any more
        while part := os.read(reader, 65536):  # what is not read holds up the writer
            shown += part
    out, _ = process.communicate(timeout=PATIENCE)
    os.close(reader)
    assert process.returncode == 0
    assert out.startswith(f"{artifact}: ok")
    assert b"hashing weights.safetensors" in shown
