"""What a step is told, written into the arrays of the device that it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.artifact.plan import DRAW_WORDS, Plan
from dsv3c.runtime.engine.history import Ids
from dsv3c.runtime.engine.sampling import Draw


class Feed:
    """The inputs of one step: tokens, positions, sequence [T]; pages of each sequence [S, P]; rows [R] that have
    logits; draws of rows. Filled once a step; what it is given has been checked.

    tokens, sequences, rows: how many there are so far. A small model's step takes less time than a few dozen operations
    on small arrays, hence none is made here.
    """

    def __init__(self, plan: Plan, inputs: Mapping[str, NDArray[Any]]) -> None:
        self.tokens = self.sequences = self.rows = 0
        self._bounds = plan.bounds
        self._inputs = inputs
        self._numbers = np.arange(max(plan.context, plan.bounds.T), dtype=np.int32)

    def clear(self) -> None:
        self.tokens = self.sequences = self.rows = 0

    def append(self, tokens: Ids, position: int, pages: Ids, rows: int) -> None:
        """A sequence with these pages, whose next tokens begin at `position`; the last `rows` of them have logits."""
        inputs, numbers = self._inputs, self._numbers
        first, end = self.tokens, self.tokens + tokens.size
        inputs["tokens"][first:end] = tokens
        inputs["positions"][first:end] = numbers[position : position + tokens.size]
        inputs["sequence"][first:end] = self.sequences
        inputs["rows"][self.rows : self.rows + rows] = numbers[end - rows : end]
        self._append_pages(pages)
        self.tokens, self.rows = end, self.rows + rows

    def fill(self, tokens: Ids, positions: Ids, sequence: Ids, pages: Many[Ids], rows: Ids) -> None:
        """A whole step."""
        self.clear()
        self.tokens, self.rows = tokens.size, rows.size
        for name, values in (("tokens", tokens), ("positions", positions), ("sequence", sequence), ("rows", rows)):
            self._inputs[name][: values.size] = values
        for table in pages:
            self._append_pages(table)

    def finish(self, draws: Many[Draw] = ()) -> None:
        """Say how much there is of it, and how rows are drawn."""
        self._inputs["control"][:2] = self.tokens, self.rows
        for row, draw in enumerate(draws):
            self._inputs["sampling"][row * DRAW_WORDS : (row + 1) * DRAW_WORDS] = draw.words

    def _append_pages(self, pages: Ids) -> None:
        start = self.sequences * self._bounds.P
        self._inputs["page_table"][start : start + pages.size] = pages
        self.sequences += 1
