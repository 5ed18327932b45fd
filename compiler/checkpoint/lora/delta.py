"""W + scale * B @ A, computed when W is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dsv3c.compiler.checkpoint.errors import NonFiniteWeightError
from dsv3c.compiler.checkpoint.quantised.weight import Array, Readable
from dsv3c.compiler.checkpoint.stored import Float32, StoredTensor, decoded

_CHUNK = 1 << 22  # numbers of a product at a time


@dataclass(frozen=True)
class Factor:
    """A part of a matrix of an adapter; turned: the transpose of it."""

    tensor: StoredTensor
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))
    turned: bool = False

    def read(self) -> Float32:
        """Raises NonFiniteWeightError, ChangedFileError."""
        info, file = self.tensor.info, self.tensor.file
        found = decoded(self.tensor.array()[self.rows, self.columns], info.dtype)
        file.release(info.begin, info.end)
        _check_finite(found, file.path, info.name)
        return found.T if self.turned else found


@dataclass(frozen=True)
class Delta:
    """scale * left [N, r] @ right [r, K]"""

    left: Factor
    right: Factor
    scale: float


@dataclass(frozen=True)
class MergedWeight:
    """A matrix with what an adapter adds to it; `name` is for messages. It has no codes, whatever `base` has."""

    base: Readable
    delta: Delta
    name: str

    coding: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def decode(self, out: Float32 | None = None) -> Float32:
        """Raises what reading either raises, NonFiniteWeightError too where the sum is none."""
        out = self.base.decode(out)
        left, right, scale = self.delta.left.read(), self.delta.right.read(), np.float32(self.delta.scale)
        with np.errstate(over="ignore", invalid="ignore"):  # reported by the check that follows
            step = max(1, _CHUNK // self.shape[1])
            for row in range(0, self.shape[0], step):
                chunk, added = out[row : row + step], left[row : row + step] @ right
                added *= scale
                chunk += added
                _check_finite(chunk, self.delta.left.tensor.file.path, self.name, row)
        return out

    def coded(self) -> Array:
        return self.decode()


def _check_finite(found: Float32, path: Path, name: str, first_row: int = 0) -> None:
    finite = np.isfinite(found)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0].tolist()
    position = [first_row + row, column]
    raise NonFiniteWeightError(path=path, tensor=name, found=float(found[row, column]), position=position)
