"""What the engine owes on every device: a batch is answered as each of its prompts alone, whoever drafts."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dsv3c.runtime.engine.generation import Drafted
from dsv3c.runtime.engine.lanes import Lane
from dsv3c.runtime.engine.sampling import Sampler
from dsv3c.runtime.engine.speculation.ngram import NgramDrafter
from dsv3c.runtime.model import Model

LENGTHS = (3, 17, 1, 26)
HOWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.95, "seed": 11},
    {"temperature": 0, "num_beams": 3},
)


@dataclass
class Text:
    """What a drafter is given of a text."""

    lane: Lane
    sampler: Sampler
    drafted: Drafted = field(default_factory=Drafted)
    left: int = 9
    room: int = 99


def prompts(vocab_size: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(8)
    return [rng.integers(3, vocab_size, length).tolist() for length in lengths]


def check_batches(model: Model, count: int = 6) -> None:
    """For a model in float32. Raises AssertionError."""
    texts = prompts(model.config.vocab_size)
    for how in HOWS:
        alone = [model.generate(text, max_new_tokens=count, **how).token_ids for text in texts]
        assert [each.token_ids for each in model.generate_batch(texts, max_new_tokens=count, **how)] == alone
    assert model.session.pool.free_pages == model.session.pool.pages


def draft_always(drafted: Model) -> None:
    """As many drafts as there may be, whether that pays or not, after reading all of a text."""
    speculator = drafted.engine.scheduler.speculator
    assert speculator is not None
    lengths, most = speculator.lengths, speculator.drafter.most

    def choose(lanes: int, rates: Many[float], room: int, far: int = 0, to_come: int = 0) -> int:
        lengths.hearing = speculator.drafter.hears > 0
        return min(most, room // len(rates)) if rates else 0

    lengths.choose = choose  # type: ignore[method-assign]
    lengths.readable = lambda lanes, drafted, count, far: 2**20  # type: ignore[method-assign]


def check_drafts(drafted: Model, plain: Model, count: int = 16) -> None:
    """As many drafts as the drafter of `drafted` makes, and the text of `plain`. Raises AssertionError."""
    speculator = drafted.engine.scheduler.speculator
    assert speculator is not None
    draft_always(drafted)
    if isinstance(speculator.drafter, NgramDrafter):
        speculator.drafter.shortest = 1  # any token that comes again
    texts = [text * 2 for text in prompts(plain.config.vocab_size, (20, 12))]
    for how in HOWS[:2]:
        wanted = [plain.generate(text, max_new_tokens=count, **how).token_ids for text in texts]
        assert [each.token_ids for each in drafted.generate_batch(texts, max_new_tokens=count, **how)] == wanted
    assert speculator.fault is None
    assert speculator.drafted.proposed > 0
