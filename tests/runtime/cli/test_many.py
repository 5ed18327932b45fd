"""`generate` with many prompts: JSON lines in, JSON lines out, in their order; what fails and what it leaves."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.cli import many
from dsv3c.runtime.cli.prompts import Asked
from dsv3c.runtime.errors import StepInvalid
from dsv3c.runtime.model import Model
from dsv3c.runtime.progress import Silent
from tests.runtime import toy
from tests.runtime.cli.conftest import Run

LINES: list[dict[str, Any]] = [
    {"prompt": "A", "max_new_tokens": 30, "id": "the longest"},
    {"ids": [0, 5, 6], "temperature": 1.5, "seed": 8, "id": [1, 2]},
    {"prompt": "ABCDEFGH", "id": None},
    {"messages": [{"role": "user", "content": "XY"}], "num_beams": 2, "num_return_sequences": 2},
    {"prompt": "AB", "max_new_tokens": 1},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    return path


def read(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_answers_come_in_the_order_of_the_prompts_as_each_alone(talking: Path, run: Run, file: Path) -> None:
    out, err = run("generate", talking, "--prompts", file, "--temperature", 0, "--ignore-eos", "-n", 4)
    found = read(out)
    assert [line["id"] for line in found] == ["the longest", [1, 2], None, 3, 4]
    with load(talking) as model:
        for line, said in zip(found, LINES, strict=True):
            prompt = next(said[name] for name in ("prompt", "ids", "messages") if name in said)
            own = {name: value for name, value in said.items() if name not in ("prompt", "ids", "messages", "id")}
            alone = model.generate(prompt, **{"temperature": 0, "ignore_eos": True, "max_new_tokens": 4, **own})
            results = line.get("results", [line])
            assert [tuple(each["token_ids"]) for each in results] == [each.token_ids for each in (alone, *alone.others)]
            assert line["seed"] == own.get("seed")
    assert err.startswith("5 prompts, ") and err.endswith("finish_reason 6 length\n")


def test_several_prompts_are_lines_too(talking: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"CD")))
    found = read(run("generate", talking, "-p", "AB", "-p", "-", "-n", 3, "--seed", 1, "--temperature", 1)[0])
    assert [(line["id"], line["seed"], line["prompt_tokens"]) for line in found] == [(0, 1, 3), (1, 1, 3)]


def test_a_prompt_that_fails_has_an_error_and_the_others_answers(talking: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "A"}\n{"ids": [99], "id": "x"}\n{"prompt": "%s"}\n{"prompt": "B"}\n' % ("A" * 100))
    out, err = run("generate", talking, "--prompts", path, "-n", 2, code=1)
    first, unknown, long, last = read(out)
    assert first["new_tokens"] > 0 and last["new_tokens"] > 0
    assert unknown["id"] == "x" and unknown["error"]["code"] == "TokenOutOfRange"
    assert "the context holds 64" in long["error"]["message"] and long["error"]["hint"]
    assert "error: 2 of 4 prompts failed" in err


def test_a_fault_of_the_device_ends_the_requests_of_its_step_alone(
    talking: Path, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = toy.ToyDevice.run

    def failing(device: toy.ToyDevice, entry: str) -> None:
        if len(device.steps) == 4:
            device.steps.append(("failed", 0, 0))
            raise StepInvalid(where="toy", reason="failed")
        ran(device, entry)

    monkeypatch.setattr(toy.ToyDevice, "run", failing)
    found = read(run("generate", talking, "--prompts", file, "--temperature", 0, "-n", 4, code=1)[0])
    failed = [line for line in found if "error" in line]
    assert 0 < len(failed) < len(LINES) and all("toy: failed" in line["error"]["message"] for line in failed)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "A"', "line 3: it is not valid JSON"),
        ('["A"]', "line 3: it is not a JSON object"),
        ("{}", "line 3: it has no prompt; give one of prompt, messages, ids"),
        ('{"prompt": "A", "ids": [1]}', "line 3: it has prompt and ids; give one"),
        ('{"prompt": 3}', "line 3: prompt must be a text"),
        ('{"prompt": "A", "prompt": "B"}', "line 3: the key 'prompt' is given twice"),
        ('{"messages": [{"content": "A"}]}', "line 3: messages must be a list of objects"),
        ('{"ids": [1.5]}', "line 3: ids must be a list of token ids"),
        ('{"prompt": "A", "temprature": 1}', "line 3: unknown generation parameter 'temprature'"),
        ('{"prompt": "A", "top_p": 7}', "line 3: top_p is 7: it must be above 0"),
        ('{"prompt": "A", "min_new_tokens": 5}', "line 3: min_new_tokens is 5: it is above max_new_tokens, which is 4"),
        ('{"prompt": "A", "overflow": "spill"}', "line 3: overflow is 'spill'"),
        ('{"prompt": "\udcff"}', "line 3: byte 12 is not UTF-8"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_told_before_anything_runs(
    talking: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "A"}\n\n' + line.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(Model, "load", None)
    out, err = run("generate", talking, "--prompts", path, "-n", 4, code=1)
    assert out == "" and f"{path}, {says}" in err and 'a line is one JSON object with "prompt"' in err


@pytest.mark.parametrize(("content", "says"), [(None, "No such file"), ("\n \n", "there is no line in it")])
def test_a_file_without_prompts_is_told(run: Run, tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    assert f"cannot read prompts from {path}: {says}" in run("generate", "OUT", "--prompts", path, code=1)[1]


def test_whoever_is_left_is_cancelled_when_the_output_is_lost(talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(value: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(many, "print_line", lost)
    with load(talking) as model:
        free = model.session.pool.free_pages
        with pytest.raises(BrokenPipeError):
            many.answer_all(model, [Asked("A"), Asked("B")], lambda asked: {"seed": 1}, Silent())
        assert model.engine.scheduler.idle and model.session.pool.free_pages == free


@pytest.mark.parametrize(
    ("asked", "sequences"),
    [
        ([(10, 10, 1)], 1),
        ([(40, 20, 1)] * 2, 2),
        ([(10, 10, 1)] * 4, 1),  # three of them in a step of three, below one context
        ([(40, 20, 1)] * 50, 3),
        ([(1000, 1000, 4)], 1),
    ],
)
def test_memory_is_for_what_a_step_can_hold(tmp_path: Path, asked: list[tuple[int, int, int]], sequences: int) -> None:
    assert many.sequences_for(toy.toy_artifact(tmp_path / "toy").plan, None, asked) == sequences


@pytest.mark.parametrize("args", [("--regex", "("), ()], ids=["for all", "for a line"])
def test_a_grammar_that_cannot_be_compiled_is_one_error(
    talking: Path, run: Run, tmp_path: Path, args: tuple[str, ...]
) -> None:
    pytest.importorskip("llguidance")
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "A"}\n' + json.dumps({"prompt": "B"} if args else {"prompt": "B", "regex": "("}) + "\n")
    out, err = run("generate", talking, "--prompts", path, *args, code=1)
    assert out == "" and err.count("error: ") == 1 and (f"{path}, line 2: " in err) == (not args)


def test_null_stands_for_what_is_not_given(talking: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "A", "max_new_tokens": null, "seed": null}\n{"prompt": "A", "max_length": null}\n')
    found = read(run("generate", talking, "--prompts", path, "--temperature", 1, "--ignore-eos")[0])
    assert [line["finish_reason"] for line in found] == ["length"] * 2
    assert all(isinstance(line["seed"], int) for line in found)
