"""The token ids of one text: its prompt, and what was generated after it."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class History:
    """Grows by `append`, shrinks by `truncate` (roll back), splits by `fork`. What it returns are views, good until it
    changes. `prompt_length` tokens are the prompt's."""

    def __init__(self, prompt: Many[int] | Ids = (), generated: Many[int] | Ids = ()) -> None:
        self.prompt_length = len(prompt)
        self._length = len(prompt) + len(generated)
        self._ids = np.empty(2 * self._length + 16, np.int32)
        self._ids[: self.prompt_length] = prompt
        self._ids[self.prompt_length : self._length] = generated

    def __len__(self) -> int:
        return self._length

    @property
    def tokens(self) -> Ids:
        return self._ids[: self._length]

    @property
    def generated(self) -> Ids:
        return self._ids[self.prompt_length : self._length]

    def append(self, token: int) -> None:
        if self._length == self._ids.size:
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._length] = token
        self._length += 1

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on, which are generated ones."""
        if not self.prompt_length <= length <= self._length:
            raise ValueError(f"{length} is not from {self.prompt_length} to {self._length}")
        self._length = length

    def fork(self) -> History:
        """A history of the same tokens that goes its own way."""
        return History(self.tokens[: self.prompt_length], self.generated)
