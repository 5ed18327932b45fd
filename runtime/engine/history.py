"""stub, replaced at merge"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


class History:
    def __init__(self, prompt: Ints) -> None:
        self._tokens = np.array(prompt, np.int32)
        self.prompt_length = int(self._tokens.size)

    @property
    def tokens(self) -> Ints:
        return self._tokens

    @property
    def generated(self) -> Ints:
        return self._tokens[self.prompt_length :]

    def append(self, token: int) -> None:
        self._tokens = np.append(self._tokens, np.int32(token))

    def fork(self) -> History:
        other = History(self._tokens)
        other.prompt_length = self.prompt_length
        return other
