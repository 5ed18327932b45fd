"""`generate` on the toy: what reaches the model of a prompt and of options, and what is printed of answers."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsv3c.runtime import load
from dsv3c.runtime.cli import decoding
from dsv3c.runtime.model import Model
from tests.runtime import toy
from tests.runtime.cli.conftest import Run
from tests.runtime.test_model import greedy

GREEDY = ("--temperature", 0, "--ignore-eos")


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameters of all requests."""
    found: list[dict[str, Any]] = []
    submit = Model.submit

    def noting(model: Model, prompt: Any, add_bos: bool | None = None, **how: Any) -> Any:
        found.append(how)
        return submit(model, prompt, add_bos, **how)

    monkeypatch.setattr(Model, "submit", noting)
    return found


def test_the_answer_streams_behind_its_prompt(talking: Path, run: Run) -> None:
    with load(talking) as model:
        expected = model.generate("AB", max_new_tokens=9, temperature=0, ignore_eos=True)
    out, err = run("generate", talking, "-p", "AB", *GREEDY, "-n", 9)
    assert out == f"AB{expected.text}\n"
    assert err.startswith("9 tokens at ") and err.endswith(", finish_reason length\n")


@pytest.mark.parametrize(("args", "tokens"), [((), 3), (("--no-bos",), 2)])
def test_a_text_goes_with_or_without_the_bos(talking: Path, run: Run, args: tuple[str, ...], tokens: int) -> None:
    assert json.loads(run("generate", talking, "-p", "AB", "-n", 1, "--json", *args)[0])["prompt_tokens"] == tokens


def test_a_model_without_a_tokenizer_takes_and_prints_ids(talking: Path, tmp_path: Path, run: Run) -> None:
    plain = toy.write_artifact(tmp_path / "plain")
    expected = greedy([0, 17, 42], 2)
    args = ("generate", plain, "--ids", "0 17,42", *GREEDY, "-n", 2)
    assert run(*args)[0].split() == [str(token) for token in expected]
    assert json.loads(run(*args, "--json")[0])["token_ids"] == expected


@pytest.mark.parametrize("data", [b"AB\r\n", b"\xef\xbb\xbfAB\r\n"])
def test_stdin_is_utf8_without_its_byte_order_mark(
    talking: Path, run: Run, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    give_stdin(monkeypatch, data)
    assert run("generate", talking, "-p", "-", "-n", 1)[0].startswith("AB\r\n")


@pytest.mark.parametrize("data", [b"a\xff", b"\xff\xfea\0"])
def test_stdin_that_is_no_utf8_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    give_stdin(monkeypatch, data)
    assert "is not UTF-8" in run("generate", "OUT", "-p", "-", code=1)[1]


def test_stdin_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3c.runtime.cli.prompts.PROMPT_LIMIT", 10)
    give_stdin(monkeypatch, b"x" * 11)
    assert "more than 10 bytes" in run("generate", "OUT", "-p", "-", code=1)[1]


def test_options_are_the_parameters_of_the_engine(talking: Path, run: Run, asked: list[dict[str, Any]]) -> None:
    line = (
        "-n 3 --min-new-tokens 1 --stop X --stop Y --eos-token-id 7 --eos-token-id 8 --max-time 9 --overflow slide "
        "--temperature 0.5 --top-k 40 --top-p 0.9 --min-p 0.1 --typical-p 0.8 --seed 3 --repetition-penalty 1.1 "
        "--frequency-penalty -0.5 --presence-penalty 0.25 --no-repeat-ngram-size 2 --bad-words Q "
        "--num-return-sequences 2 --logit-bias 5=-1.5 --logit-bias 6=-inf --logprobs 1"
    )
    run("generate", talking, "-p", "AB", *line.split(), "--suppress-tokens", "10, 11")
    assert asked[0] == {
        "max_new_tokens": 3, "min_new_tokens": 1, "stop": ["X", "Y"], "eos_token_id": [7, 8], "max_time": 9.0,
        "overflow": "slide", "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "seed": 3,
        "repetition_penalty": 1.1, "frequency_penalty": -0.5, "presence_penalty": 0.25, "no_repeat_ngram_size": 2,
        "bad_words_ids": [[35]], "suppress_tokens": [10, 11], "logit_bias": {5: -1.5, 6: -float("inf")},
        "num_return_sequences": 2, "logprobs": 1,
    }  # fmt: skip


def test_options_of_beams_are_those_of_the_engine(talking: Path, run: Run, asked: list[dict[str, Any]]) -> None:
    line = "--num-beams 2 --num-beam-groups 2 --diversity-penalty 0.5 --length-penalty 0 --early-stopping never"
    run("generate", talking, "-p", "AB", *line.split(), "-n", 2, "--seed", 1)
    assert asked[0] == {
        "num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5, "length_penalty": 0.0, "max_new_tokens": 2,
        "early_stopping": "never", "seed": 1,
    }  # fmt: skip


def test_every_option_is_listed_in_the_help(run: Run) -> None:
    listed = [name for names in decoding.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(decoding.OPTIONS)
    out, _ = run("generate", "--help")
    assert [title for title in (*decoding.SECTIONS, "Prompts", "Machine") if f"\n{title}:\n" not in out] == []


def test_an_answer_that_must_be_long_may_be(talking: Path, run: Run, asked: list[dict[str, Any]]) -> None:
    run("generate", talking, "-p", "AB", "--min-new-tokens", 999, "--max-time", 0.1)
    assert asked[0]["max_new_tokens"] == 999


class Words:
    """A tokenizer by which a word has another token behind a blank."""

    def encode_plain(self, text: str) -> list[int]:
        return [len(text), 1] if text.startswith(" ") else [len(text)]


def test_bad_words_are_banned_with_and_without_a_blank() -> None:
    how = decoding.with_word_ids({"seed": 1, "bad_words": ["cat", "cat", " dog"]}, Words())  # type: ignore[arg-type]
    assert how == {"seed": 1, "bad_words_ids": [[3], [4, 1]]}


def test_several_results_stand_apart(talking: Path, run: Run) -> None:
    args = ("generate", talking, "-p", "AB", "--num-beams", 3, "--num-return-sequences", 2, "-n", 4)
    report = json.loads(run(*args, "--json")[0])
    texts, scores = zip(*((each["text"], each["score"]) for each in report["results"]), strict=True)
    assert scores[0] > scores[1] and report["seed"] is None
    out, _ = run(*args)
    expected = [f"--- {i} of 2, score {scores[i - 1]:.4f}\nAB{texts[i - 1]}\n" for i in (1, 2)]
    assert out == "".join(expected)


def test_logprobs_are_listed_by_token(talking: Path, run: Run) -> None:
    args = ("generate", talking, "-p", "AB", *GREEDY, "-n", 2, "--logprobs", 2)
    expected = json.loads(run(*args, "--json")[0])["logprobs"]
    for token in expected:
        assert token["top"][0] == {name: token[name] for name in ("token_id", "text", "logprob")}  # the likeliest
        assert token["top"][1]["logprob"] <= token["logprob"] < 0
    _, *lines = run(*args)[0].splitlines()
    assert [line.split()[:2] for line in lines] == [[repr(t["text"]), f"{t['logprob']:.3f}"] for t in expected]


def test_a_window_that_slid_is_told(talking: Path, run: Run) -> None:
    args = ("generate", talking, "-p", "AB", *GREEDY, "--context", 16, "-n", 30)
    assert "note: the context of 16 tokens is full; --overflow slide goes on" in run(*args)[1]
    _, err = run(*args, "--overflow", "slide")
    assert err.startswith("30 tokens") and "the window of 16 tokens slid, 18 tokens were dropped" in err


def test_what_drafts_were_worth_is_told(talking: Path, run: Run) -> None:
    args = ("generate", talking, "-p", "AB", "-n", 2)
    assert "drafts" not in run(*args)[1]
    assert "note: drafts by n-gram lookup were to be had and not used" in run(*args, "--speculate", "ngram")[1]


def test_a_wrong_combination_is_told_before_the_model_is_loaded(
    talking: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "load", None)
    err = run("generate", talking, "-p", "AB", "--num-beams", 2, "--temperature", 1, code=1)[1]
    assert "num_beams is 2" in err and "give do_sample=False" in err


@pytest.mark.parametrize("drafter", [("--speculate", "ngram"), ("--draft", "OUT")], ids=" ".join)
def test_drafts_leave_the_text_as_it_is(talking: Path, run: Run, drafter: tuple[str, str]) -> None:
    args = ("generate", talking, "-p", "AB", "--temperature", 1, "--seed", 5, "--ignore-eos", "-n", 30)
    kind, name = drafter
    out, err = run(*args, kind, talking if name == "OUT" else name)
    assert out == run(*args)[0]
    assert "drafts by " in err
