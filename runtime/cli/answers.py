"""What is told of an answer: as JSON for programs, in a few lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any

from dsv3c.runtime.cli.output import columns

if TYPE_CHECKING:
    from dsv3c.runtime.engine.generation import Generation, TokenLogprobs
    from dsv3c.runtime.model import Model


def request_report(model: Model, generations: Many[Generation], how: Mapping[str, Any]) -> dict[str, Any]:
    """All that is known of one request: of one result at the top, of several in a list."""
    first = generations[0]
    results = [_result(model, each) for each in generations]
    drawn = model.parameters(how).temperature > 0
    return {
        **(results[0] if len(results) == 1 else {"results": results}),
        "seed": how["seed"] if drawn else None,
        "prompt_tokens": first.prompt_tokens,
        "cached_tokens": first.cached_tokens,
        "prompt_tokens_per_second": round(first.prompt_tokens_per_second, 2),
        "decode_tokens_per_second": round(first.decode_tokens_per_second, 2),
        "first_token_seconds": round(first.first_token_seconds, 4),
    }


def _result(model: Model, generation: Generation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": generation.text,
        "token_ids": list(generation.token_ids),
        "finish_reason": generation.finish_reason,
        "new_tokens": len(generation.token_ids),
    }
    if generation.score is not None:
        found["score"] = generation.score
    if generation.dropped_tokens:
        found["dropped_tokens"] = generation.dropped_tokens
    if generation.drafted.steps:
        drafted = generation.drafted
        found["drafted"] = {"proposed": drafted.proposed, "accepted": drafted.accepted, "steps": drafted.steps}
    if generation.logprobs:
        found["logprobs"] = [_token(model, each) for each in generation.logprobs]
    return found


def _token(model: Model, token: TokenLogprobs) -> dict[str, Any]:
    top = [{"token_id": i, "text": _text(model, i), "logprob": round(value, 6)} for i, value in token.top]
    text = _text(model, token.token_id)
    return {"token_id": token.token_id, "text": text, "logprob": round(token.logprob, 6), "top": top}


def _text(model: Model, token: int) -> str | None:
    return model.tokenizer.decode([token]) if model.has_tokenizer else None


def logprob_lines(model: Model, tokens: Many[TokenLogprobs]) -> list[str]:
    """A line for each token: its log-probability, and the likeliest ones."""

    def named(token: int) -> str:
        return str(token) if (text := _text(model, token)) is None else repr(text)

    rows = [
        [named(each.token_id), f"{each.logprob:.3f}", *(f"{named(i)} {value:.3f}" for i, value in each.top)]
        for each in tokens
    ]
    return columns(rows)


def summary(model: Model, generations: Many[Generation], seed: int | None) -> str:
    """How much, how fast, with what, and why it ended."""
    first = generations[0]
    count = sum(len(each.token_ids) for each in generations)
    report = model.report()
    cached = f" ({first.cached_tokens} cached)" if first.cached_tokens else ""
    told = "" if seed is None else f", seed {seed}"
    place = f" on {report['name']}" if "name" in report else ""
    ends = dict.fromkeys(each.finish_reason for each in generations)
    return (
        f"{count} tokens at {first.decode_tokens_per_second:.1f} tok/s, prompt of {first.prompt_tokens}{cached} at "
        f"{first.prompt_tokens_per_second:.1f} tok/s{told}{place}, finish_reason {' and '.join(ends)}"
    )


def notes(model: Model, generations: Many[Generation], most: int | None) -> Iterator[str]:
    """What else a person should know. most: tokens that were asked for."""
    dropped = max(each.dropped_tokens for each in generations)
    if dropped:
        yield f"note: the window of {model.context} tokens slid, {dropped} tokens were dropped"
    for each in generations:
        if each.finish_reason == "length" and most is not None and len(each.token_ids) < most:
            yield f"note: the context of {model.context} tokens is full; --overflow slide goes on"
            break
    yield from speculation_notes(model)


def speculation_notes(model: Model) -> Iterator[str]:
    """What drafts were worth, for a model that was loaded with them."""
    report = model.report().get("speculation")
    if report is None:
        return
    if not report["proposed"]:
        yield f"note: drafts by {report['drafter']} were to be had and not used: none were expected to pay here"
    else:
        yield (
            f"drafts by {report['drafter']}: {report['accepted']} of {report['proposed']} right "
            f"({report['acceptance']:.0%}), {report['drafts_a_step']:.1f} a step, "
            f"{report['gain']:.2f} times plain decoding"
        )
    if report["fault"] is not None:
        yield f"note: drafting ended: {report['fault'].partition(chr(10))[0]}"
