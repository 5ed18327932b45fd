"""`eval` of the runtime, over the toy: what is printed, and what is told of what cannot be measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsv3c.runtime import cli
from dsv3c.runtime import model as model_module
from tests.checkpoints import tiny_config, write_checkpoint, write_tokenizer
from tests.runtime import toy

WORDS = "A HEN AND A LION BAKE A CAKE. A CHILD CAME: AM I LIKE A LION? NO, LIKE A HEN. AND HE FELL IN A LAKE."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Has the artifact `out` and the text `words.txt`, and is the current folder."""
    monkeypatch.setattr(
        model_module, "place", lambda artifact, slots, _: (artifact, toy.ToyDevice(artifact.plan, slots))
    )
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path, toy.VOCAB)
    toy.write_artifact(tmp_path / "out", tokenizer__json=(tmp_path / "tokenizer.json").read_bytes())
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    """stdout of a command that succeeds, stderr of one that fails."""
    found = cli.run(["eval", *args])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.err if code else captured.out


@pytest.mark.usefixtures("folder")
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("--text", "words.txt", "--text", "words.txt")
    report = json.loads(run(capsys, "out", *texts, "--against", "out", "--context", "16", "--json"))
    assert {name: report[name] for name in ("artifact", "against", "context", "bos")} == {
        "artifact": "out",
        "against": "out",
        "context": 16,
        "bos": "text",
    }
    first, second = report["texts"]
    assert first == second
    assert first["tokens"] == len(WORDS) - 1 and first["windows"] == 7
    assert (first["against"]["kl"], first["against"]["top1"], first["against"]["ratio"]) == (0, 1, 1)


@pytest.mark.usefixtures("folder")
def test_a_table_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "out", "--text", "words.txt", "--tokens", "40", "--against", "out")
    assert out.splitlines()[:2] == ["out on toy, windows of 64 tokens, against out", "words.txt, 40 predictions"]
    assert "  ratio of perplexities    1.00000 ± 0.00000 (+0.00%)\n" in out
    assert "  same first choice        100.00% ± 0.00%\n" in out
    alone = run(capsys, "out", "--text", "words.txt", "--tokens", "40")
    assert [line.split("  ")[1] for line in alone.splitlines()[2:]] == ["perplexity", "negative log-likelihood"]


def test_figures_without_end_are_null(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "out", "--text", "words.txt", "--json")
    assert "Infinity" not in text and "NaN" not in text


def test_a_checkpoint_needs_the_compiler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(folder / "checkpoint", tiny_config())
    told = run(capsys, "out", "--text", "words.txt", "--against", "checkpoint", code=1)
    assert told.startswith("error: checkpoint is a checkpoint, which the runtime alone cannot compile\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read words.txt: No such file"),
        (b"\xff\xfe", "words.txt is no text to measure with: byte 0 is not UTF-8"),
        (b"", "words.txt is no text to measure with: it is empty"),
        (b"A HEN.", "words.txt is too short to measure with: it has 6 tokens, at least 33 are needed"),
    ],
)
def test_what_is_no_text_is_told(
    content: bytes | None, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "words.txt").unlink()
    if content is not None:
        (folder / "words.txt").write_bytes(content)
    assert says in run(capsys, "out", "--text", "words.txt", code=1)


@pytest.mark.parametrize(
    "args",
    [
        ("out",),
        ("out", "--text", "words.txt", "--context", "1"),
        ("out", "--text", "words.txt", "--bos", "never"),
        ("out", "--text", "words.txt", "--tokens", "0"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_wrong_options_are_wrong_usage(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert "Error: " in run(capsys, *args, code=2)


@pytest.fixture
def measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The artifact with figures in its manifest, and what else `inspect` shows."""
    options = ("--text", "words.txt", "--against", "out", "--json")
    figures = json.loads(run(capsys, "out", *options))
    del figures["artifact"]
    parts: dict[str, Any] = {"parts": {}}
    for key, value in {"quality": figures, "weights": parts, "quantization": {}, "notes": []}.items():
        toy.edit_json(folder / "out" / "manifest.json", key, value=value)
    return folder / "out"


def inspected(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = cli.run(["inspect", *args])
    captured = capsys.readouterr()
    return code, captured.out or captured.err


def test_inspect_shows_what_was_measured(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = inspected(capsys, str(measured))
    assert code == 0
    title = "measured on toy, windows of 64 tokens, against out\n"
    assert f"{title}words.txt, {len(WORDS) - 1} predictions\n  perplexity " in out
    quality = json.loads(inspected(capsys, str(measured), "--json")[1])["quality"]
    assert quality == json.loads((measured / "manifest.json").read_text())["quality"]


def test_inspect_of_what_was_not_measured_shows_nothing(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((measured / "manifest.json").read_text())
    del content["quality"]
    (measured / "manifest.json").write_text(json.dumps(content))
    assert json.loads(inspected(capsys, str(measured), "--json")[1])["quality"] is None
    assert "measured" not in inspected(capsys, str(measured))[1]


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        ((), [], "manifest.quality: must be an object"),
        (("texts",), {}, "manifest.quality.texts: must be a list"),
        (("texts", 0), 7, "manifest.quality.texts[0]: must be an object"),
        (("texts", 0, "perplexity"), "low", "perplexity: must be a finite number or null"),
        (("texts", 0, "against", "kl"), True, "kl: must be a finite number or null"),
        (("context",), 0, "manifest.quality.context: is 0"),
    ],
)
def test_inspect_tells_of_figures_that_are_none(
    keys: tuple[Any, ...], value: Any, says: str, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.edit_json(measured / "manifest.json", "quality", *keys, value=value)
    code, err = inspected(capsys, str(measured))
    assert code == 1 and says in err


def test_a_copy_measures_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "out", folder / "copy")
    reports = [json.loads(run(capsys, name, "--text", "words.txt", "--json")) for name in ("out", "copy")]
    assert reports[0]["texts"] == reports[1]["texts"]
