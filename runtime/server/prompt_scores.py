"""Log-probabilities of a prompt's own tokens, for those who ask for its echo with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv3c.runtime.engine.answer import logprobs_of
from dsv3c.runtime.engine.session import Ints, Request
from dsv3c.runtime.server.deltas import Scored
from dsv3c.runtime.server.token_texts import scored, unscored

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model


def prompt_scores(model: Model, ids: Ints, count: int) -> tuple[Scored, ...]:
    """Of each token, given those before it, and the `count` likeliest in its place. Runs in a thread; other requests
    wait for it, as it is one run of the device."""
    tokenizer = model.tokenizer
    found = [unscored(tokenizer, int(ids[0]))]
    with model.session.turns:
        sequence = model.new_sequence()
        try:
            for chunk in model.session.chunks([Request(sequence, ids, "all")]):
                following = ids[chunk.start + 1 : chunk.start + chunk.count + 1].tolist()
                rows = zip(chunk.logits, following, strict=False)  # nothing follows the last
                found += [scored(tokenizer, logprobs_of(row, token, count)) for row, token in rows]
        finally:
            sequence.close()
    return tuple(found)
