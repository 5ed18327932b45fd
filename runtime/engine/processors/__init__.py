"""What changes a row of logits before a token is taken from it, in the order of transformers (docs/32).

A processor changes logits f32 [V] in place, given the tokens so far. It keeps no state between calls, so that a text
can fork and roll back; an id with the logit -inf cannot be taken.
"""

from __future__ import annotations

from collections.abc import Callable

from dsv3c.runtime.engine.history import History
from dsv3c.runtime.engine.params import SamplingParams
from dsv3c.runtime.engine.processors import bans, penalties
from dsv3c.runtime.engine.processors.filters import Floats

Processor = Callable[[Floats, History], None]


def processors_for(params: SamplingParams, end_tokens: frozenset[int]) -> list[Processor]:
    """Those that these parameters ask for, for a text that `end_tokens` end. Temperature and what cuts off unlikely ids
    come after all of them: `filters`."""
    found: list[Processor] = []
    if params.repetition_penalty != 1:
        found.append(penalties.Repetition(params.repetition_penalty))
    if params.frequency_penalty or params.presence_penalty:
        found.append(penalties.Counts(params.frequency_penalty, params.presence_penalty))
    if params.logit_bias:
        found.append(penalties.Bias(params.logit_bias))
    if params.no_repeat_ngram_size:
        found.append(bans.RepeatedNgrams(params.no_repeat_ngram_size))
    if params.bad_words_ids:
        found.append(bans.BadWords(params.bad_words_ids, end_tokens))
    if params.min_length and end_tokens:
        found.append(bans.EarlyEnd(params.min_length, end_tokens, of_answer=False))
    if params.min_new_tokens and end_tokens:
        found.append(bans.EarlyEnd(params.min_new_tokens, end_tokens, of_answer=True))
    if params.suppress_tokens:
        found.append(bans.Tokens(params.suppress_tokens))
    return found
