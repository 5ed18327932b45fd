"""AWQ's search (arXiv 2306.00978): for each site the scales of its inputs that leave the least error of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.formats.grids import Grid
from dsv3c.compiler.formats.grouping import Grouping
from dsv3c.compiler.formats.quant import OutOfRange, quantize
from dsv3c.compiler.formats.rounding import Rounded
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation.folding import Folding, Site, sites
from dsv3c.compiler.quantisation.inputs import Array, MatrixInputs
from dsv3c.compiler.quantisation.methods.search import weighted

ALPHAS = tuple(number / 10 for number in range(11))  # 0: no scales
_SAMPLE = 64  # rows of a matrix that candidates are compared on
_LEAST = 1e-4  # of the largest input: smaller ones are scaled as if they were as large


def candidates(inputs: MatrixInputs, alphas: Sequence[float]) -> list[Array]:
    """f32 [K] for each of `alphas`: the root mean square of an input to that power, around 1."""
    size = np.sqrt(np.maximum(inputs.importance, 0)).astype(np.float64)
    size = np.maximum(size, _LEAST * size.max())
    size /= np.sqrt(size.max() * size.min())
    return [(size**alpha).astype(np.float32) for alpha in alphas]


def errors(w: Array, format: WeightFormat, inputs: MatrixInputs, scales: Sequence[Array]) -> Array:
    """f64: the mean square error of the outputs of w [..., N, K], on a sample of its rows, when its columns are
    multiplied by each of `scales` before they are rounded with searched scales."""
    sample = as_float32(w[..., :: max(1, w.shape[-2] // _SAMPLE), :])
    matrices = sample.reshape(-1, *sample.shape[-2:])

    def error(matrix: Array, scale: Array) -> float:
        def search(scaled: Array, grid: Grid, grouping: Grouping) -> Rounded:
            return weighted(scaled, inputs.importance / np.square(scale), grid, grouping)

        try:
            rounded = quantize(matrix * scale, format, search)
        except OutOfRange:
            return np.inf
        return inputs.output_error(matrix - rounded.dequantize() / scale)

    return np.array([sum(error(matrix, scale) for matrix in matrices) for scale in scales])


@dataclass
class _Trial:
    """Of a site: its candidates, and the error that each leaves in each expert, and at -1 in all that is none."""

    alphas: Sequence[float]
    scales: list[Array]
    errors: dict[int, Array] = field(default_factory=dict)

    def best(self) -> int:
        """Sums are taken in the order of the experts, whoever was first."""
        total = sum((self.errors[index] for index in sorted(self.errors)), np.zeros(len(self.scales)))
        return int(np.argmin(total))


class ScaleSearch:
    """Told what each matrix meets, it fills `folding`. formats: that each weight is stored in.

    known: what `fold` returned in an earlier run, which this one goes on with; nothing is searched then.
    """

    def __init__(
        self,
        config: ModelConfig,
        formats: Mapping[Value, Collection[WeightFormat]],
        folding: Folding,
        known: Sequence[float | None] | None = None,
    ) -> None:
        self._formats = formats
        self._folding = folding
        self._names: dict[Value, set[str]] = {}
        self._trials: dict[Site, _Trial] = {}
        self._every = list(sites(config))
        self._known = {} if known is None else dict(zip(self._every, known, strict=True))
        # Rows that share one scale with all others are rounded otherwise when they are divided.
        shared = {weight for weight, found in formats.items() if any(each.grouping.per_tensor for each in found)}
        bound = {name for weight in shared for name in self._names_of(weight)}
        free = [site for site in self._every if not any(part.name in bound for part in site.producers)]
        self._sites = {(part.name, site.index): site for site in free for part in site.readers}

    def look(
        self, weight: Value, expert: int | None, w: Array, inputs: Sequence[MatrixInputs], few: str
    ) -> Callable[[], Array]:
        """As forward.RoundMatrix; nothing is rounded.

        Of several matrices the first to read a site's inputs gives its candidates; experts must not be that.
        """
        site = self._site(weight, expert)
        if site is not None and not (few and site.index is not None):
            (met,) = inputs
            alphas = (self._known[site] or 0.0,) if self._known else ALPHAS
            trial = self._trials.setdefault(site, _Trial(alphas, candidates(met, alphas)))
            if self._known:
                return lambda: w
            tokens = 1 if few else met.tokens  # statistics of a whole layer say little of a matrix
            # Blocks of fp8 are no groups of a row: what they gain is not asked.
            formats = [format for format in self._formats.get(weight, ()) if not format.keeps_fp8]
            found = [tokens * errors(w, format, met, trial.scales) for format in formats]
            index = -1 if expert is None else expert
            trial.errors[index] = sum(found, trial.errors.get(index, np.zeros(len(alphas))))
        return lambda: w

    def fold(self) -> list[float | None]:
        """When all is seen. Returns the alpha of each site, None where nothing was seen of it."""
        best = {site: trial.best() for site, trial in self._trials.items()}
        for site, chosen in best.items():
            self._folding.add(site, self._trials[site].scales[chosen])
        return [self._trials[site].alphas[best[site]] if site in best else None for site in self._every]

    def _site(self, weight: Value, expert: int | None) -> Site | None:
        places = ((name, index) for name in sorted(self._names_of(weight)) for index in (expert, None))
        return next((self._sites[place] for place in places if place in self._sites), None)

    def _names_of(self, weight: Value) -> set[str]:
        """The tensors of the checkpoint that a weight is made of."""
        if weight not in self._names:
            leaves = topological_order([weight])
            self._names[weight] = {str(leaf.attrs["name"]) for leaf in leaves if leaf.op == "param"}
        return self._names[weight]
