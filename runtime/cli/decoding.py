"""Options that say how to generate, and what the engine calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from dsv3c.runtime.cli.params import Command, Finite

if TYPE_CHECKING:
    from dsv3c.runtime.text.tokenizer import Tokenizer

NEW_TOKENS = 200  # where nothing says how long the answer may be
_EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}
_LARGEST_ID = 2**31 - 1

# What the help lists together.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Length and end": (
        "max_new_tokens", "min_new_tokens", "stop", "eos_token_id", "ignore_eos", "max_time", "overflow",
    ),
    "Drawing": ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed"),
    "Words": (
        "repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size", "bad_words",
        "suppress_tokens", "logit_bias",
    ),
    "Beams and several results": (
        "num_beams", "length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty",
        "num_return_sequences", "logprobs",
    ),
    "Speculation": ("speculate", "draft"),
}  # fmt: skip


def token_ids(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """An option's callback: whole numbers separated by spaces or commas."""
    found = None if value is None else value.replace(",", " ").split()
    if found is not None and not all(part.isascii() and part.isdigit() and len(part) < 10 for part in found):
        raise click.BadParameter(f"{value!r} must be token ids, separated by spaces")
    return None if found is None else [int(part) for part in found]


def non_empty(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(value):
        raise click.BadParameter("an empty text stands everywhere")
    return value


def biases(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[int, float]:
    """An option's callback: ID=VALUE, several times; -inf forbids a token."""
    found: dict[int, float] = {}
    for text in value:
        token, _, amount = text.partition("=")
        try:
            bias = float(amount)
        except ValueError:
            bias = math.nan
        known = token.isascii() and token.isdigit() and len(token) < 10
        if not known or not (math.isfinite(bias) or bias == -math.inf):
            raise click.BadParameter(f"{text!r} must be ID=VALUE, such as 42=-1.5 or 42=-inf")
        if int(token) in found:
            raise click.BadParameter(f"token {int(token)} is given twice")
        found[int(token)] = bias
    return found


_COUNT = click.IntRange(min=0)
_SOME = click.IntRange(min=1)
_ABOVE_0 = Finite(min=0, min_open=True)
OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "max_new_tokens": click.option(
        "-n",
        "--max-new-tokens",
        type=_SOME,
        metavar="N",
        help=f"Tokens to generate at most.  [default: {NEW_TOKENS}, or as many as must be]",
    ),
    "min_new_tokens": click.option(
        "--min-new-tokens", type=_COUNT, metavar="N", help="No end of the text before so many tokens."
    ),
    "stop": click.option(
        "--stop",
        multiple=True,
        callback=non_empty,
        metavar="TEXT",
        help="End before this text; can be given several times.",
    ),
    "eos_token_id": click.option(
        "--eos-token-id",
        multiple=True,
        type=click.IntRange(0, _LARGEST_ID),
        metavar="ID",
        help="End with this token instead of the model's; can be given several times.",
    ),
    "ignore_eos": click.option("--ignore-eos", is_flag=True, help="Go on after a token that ends the text."),
    "max_time": click.option(
        "--max-time", type=_ABOVE_0, metavar="SECONDS", help="End after this time, with what there is."
    ),
    "overflow": click.option(
        "--overflow",
        type=click.Choice(["stop", "slide"]),
        help="When the context is full: stop, or slide: go on with the first tokens of the text and its last ones.  "
        "[default: stop]",
    ),
    "temperature": click.option(
        "--temperature", type=Finite(min=0), metavar="T", help="0 takes the likeliest token; higher is more varied."
    ),
    "top_k": click.option(
        "--top-k", type=_COUNT, metavar="K", help="Choose among the K likeliest tokens only; 0 is off."
    ),
    "top_p": click.option(
        "--top-p",
        type=Finite(0, 1, min_open=True),
        metavar="P",
        help="Choose among the likeliest tokens that make up this probability; 1 is off.",
    ),
    "min_p": click.option(
        "--min-p",
        type=Finite(0, 1),
        metavar="P",
        help="Drop tokens less likely than this share of the likeliest; 0 is off.",
    ),
    "typical_p": click.option(
        "--typical-p",
        type=Finite(0, 1, min_open=True),
        metavar="P",
        help="Choose among the tokens that surprise as expected and make up this probability; 1 is off.",
    ),
    "seed": click.option("--seed", type=_COUNT, metavar="N", help="The same seed gives the same text."),
    "repetition_penalty": click.option(
        "--repetition-penalty",
        type=_ABOVE_0,
        metavar="X",
        help="Above 1: tokens of the prompt and the answer come again less likely; 1 is off.",
    ),
    "frequency_penalty": click.option(
        "--frequency-penalty",
        type=Finite(),
        metavar="X",
        help="Taken off a token's logit for each time that it is in the answer.",
    ),
    "presence_penalty": click.option(
        "--presence-penalty", type=Finite(), metavar="X", help="Taken off the logit of a token that is in the answer."
    ),
    "no_repeat_ngram_size": click.option(
        "--no-repeat-ngram-size", type=_COUNT, metavar="N", help="No N tokens in a row come twice; 0 is off."
    ),
    "bad_words": click.option(
        "--bad-words",
        multiple=True,
        callback=non_empty,
        metavar="TEXT",
        help="A word that does not come, with and without a blank before it; can be given several times.",
    ),
    "suppress_tokens": click.option(
        "--suppress-tokens", callback=token_ids, metavar='"ID ID …"', help="Tokens that never come, by their ids."
    ),
    "logit_bias": click.option(
        "--logit-bias",
        multiple=True,
        callback=biases,
        metavar="ID=VALUE",
        help="Added to the logit of a token; -inf forbids it. Can be given several times.",
    ),
    "num_beams": click.option(
        "--num-beams", type=_SOME, metavar="N", help="Follow the N likeliest texts and take the best; nothing is drawn."
    ),
    "length_penalty": click.option(
        "--length-penalty",
        type=Finite(),
        metavar="X",
        help="Beams compare log-probability / length^X: above 0 long ones gain.  [default: 1]",
    ),
    "early_stopping": click.option(
        "--early-stopping",
        type=click.Choice(list(_EARLY_STOPPING)),
        help="End with the first N whole texts (yes), when none is likely to be better (no), when none can be "
        "(never).  [default: no]",
    ),
    "num_beam_groups": click.option(
        "--num-beam-groups", type=_SOME, metavar="N", help="Put the beams in so many groups that differ."
    ),
    "diversity_penalty": click.option(
        "--diversity-penalty",
        type=Finite(min=0),
        metavar="X",
        help="How much: what a token loses for each beam of an earlier group that takes it.",
    ),
    "num_return_sequences": click.option(
        "--num-return-sequences",
        type=_SOME,
        metavar="N",
        help="Results for each prompt: drawn one by one, or the best beams.",
    ),
    "logprobs": click.option(
        "--logprobs",
        type=_COUNT,
        metavar="N",
        help="Tell the log-probability of each token, and of the N likeliest.",
    ),
    "speculate": click.option(
        "--speculate",
        type=click.Choice(["mtp", "ngram"]),
        help="Guess some tokens, check them in one step: with the model's own layer, or by what the text says already. "
        "The text stays the same; where it does not pay nothing is guessed.",
    ),
    "draft": click.option(
        "--draft",
        type=click.Path(),
        metavar="OUT",
        help="The same with a smaller artifact that has the same tokens.",
    ),
}


def decoding_options(command: Command) -> Command:
    """Adds the options of SECTIONS."""
    return options_but()(command)


def options_but(*names: str) -> Callable[[Command], Command]:
    """Adds the options of SECTIONS without some."""

    def add(command: Command) -> Command:
        for name, option in reversed(list(OPTIONS.items())):
            if name not in names:
                command = option(command)
        return command

    return add


def drafter(options: dict[str, Any]) -> str | None:
    """Who drafts; takes the two options that say so out of `options`."""
    speculate, draft = options.pop("speculate"), options.pop("draft")
    if speculate is not None and draft is not None:
        raise click.UsageError("give either --speculate or --draft")
    found: str | None = speculate or draft
    return found


def request_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a request from the options that were given; `bad_words` stays as texts."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    given = {name: value for name, value in given.items() if value not in ((), {})}
    given |= {name: list(given[name]) for name in ("stop", "eos_token_id", "bad_words") if name in given}
    if "early_stopping" in given:
        given["early_stopping"] = _EARLY_STOPPING[given["early_stopping"]]
    return given


def with_word_ids(how: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """`how` with ids in place of the texts of `bad_words`."""
    words = how.get("bad_words")
    if words is None:
        return how
    ids = {tuple(tokenizer.encode_plain(form)): None for word in words for form in _forms(word)}
    rest = {name: value for name, value in how.items() if name != "bad_words"}
    return {**rest, "bad_words_ids": [list(word) for word in ids if word]}


def _forms(word: str) -> tuple[str, ...]:
    """A word has other tokens behind a blank. One that brings its blank along is taken as it is."""
    return (word,) if word[0].isspace() else (word, f" {word}")


_LENGTHS = ("max_new_tokens", "max_length")


def with_length(how: Mapping[str, Any], usual: int = NEW_TOKENS) -> dict[str, Any]:
    """`how` with a length of the answer, where it has none."""
    how = {name: value for name, value in how.items() if name not in _LENGTHS or value is not None}
    if any(name in how for name in _LENGTHS):
        return how
    least = [value for name in ("min_new_tokens", "min_length") if type(value := how.get(name)) is int]
    return {**how, "max_new_tokens": max(usual, *least) if least else usual}
