"""What the commands say of a checkpoint by its id."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsv3c.compiler import cli
from tests.checkpoints import tiny_config, write_checkpoint
from tests.hub import COMMIT, Hub, serving


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    source = tmp_path / "source"
    write_checkpoint(source, tiny_config(num_hidden_layers=2, vocab_size=600), dtype="bfloat16")
    ranks = (base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (source / "tiktoken.model").write_bytes(b"".join(ranks))
    named = {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    (source / "tokenization_kimi.py").write_text("raise SystemExit")
    hub = Hub({path.name: path.read_bytes() for path in source.iterdir()})
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield hub


def test_a_plan_says_what_is_to_be_downloaded(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", "org/model", "--quant", "int4-g32"]) == 0
    out, notes = capsys.readouterr()
    assert out.startswith("to download: ") and "in 4 files" in out and "fetched for this" in out
    assert "1 s at 10.0 MB/s" in out and "memory to run it" in out
    assert "time to compile it: about " in out and "made from tiktoken.model" in notes
    assert cli.run(["plan", "org/model", "--json"]) == 0
    wanted = ("config.json", "tokenizer_config.json", "tiktoken.model", "model.safetensors")
    assert json.loads(capsys.readouterr().out)["download_bytes"] == sum(len(server.files[name]) for name in wanted)
    assert not (tmp_path / "cache").exists()


def test_formats_for_each_weight_are_sized_by_their_budget(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    auto = ("plan", "org/model", "--quant", "auto")
    assert cli.run([*auto, "--target-bpw", "5", "--json"]) == 0
    out, notes = capsys.readouterr()
    found = json.loads(out)["quant_plan"]
    assert found["measure"] == "relative square error of normal numbers"
    assert 4.5 < found["linear_bits_per_weight"] <= 5
    assert "the weights, which are not here: sizes are those of the budget" in notes
    assert not any(name == "model.safetensors" and asked is None for name, asked in server.asked)
    assert cli.run([*auto, "--target-bpw", "1"]) == 1
    assert "the linear weights" in capsys.readouterr().err, "what no choice could do is an error here too"


def test_compile_fetches_what_it_needs(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compile", f"org/model@{COMMIT}", "--to", "simplify"]) == 0
    assert "stopped after simplify" in capsys.readouterr().out
    snapshot = tmp_path / "cache" / "models--org--model" / "snapshots" / COMMIT
    assert not (snapshot / "tokenization_kimi.py").exists() and (snapshot / "model.safetensors").is_file()


def test_one_clear_error_for_what_is_nowhere(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "compile"):
        assert cli.run([command, "org/none"]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: org/none is neither a folder here nor") and said.count("error:") == 1
