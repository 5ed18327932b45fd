"""Which measure of single weights predicts what whole mixes of formats cost? On a checkpoint with a text.

    python -m tests.bench.measure_sensitivity CHECKPOINT --text FILE [--other FILE] [--mixes 60] [--seed 0] [--json]
        [--measures kl,scaled,error,weight] [--sequences 4] [--length 128]

Predictions for a mix, each a sum over its weights, against the KL divergence of the mix itself:

    kl      KL divergence with that weight alone in its format, measured for each format
    scaled  the same measured in one format, and carried over by the error of the products
    error   the relative square error of the products of the weight
    weight  that of the weight itself

Random mixes differ in size; those of one size have all weights in random order take 8, 5 or 4 bits until it is used up.
Also whether the allocation holds: mixes of the allocator at a few sizes beside uniform formats. --other: another text,
on which mixes are measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from dsv3c import targets
from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.driver import costs, lowering, mixing
from dsv3c.compiler.formats.table import FORMATS
from dsv3c.compiler.options import CALIBRATION_TOKENS, CompileOptions
from dsv3c.compiler.quantisation.allocation import Choice, allocate
from dsv3c.compiler.quantisation.quant_plan import Weight
from dsv3c.compiler.quantisation.sensitivity import Experiment

MIXED = ("int8-g32", "int5-g32", "int5-g128", "int4-g32", "int4-g64", "int4-g128")
Mix = Mapping[str, str]


class Study:
    """The linear weights of the main model, and what they cost alone."""

    def __init__(
        self, checkpoint: Path, text: Path, other: Path, measures: list[str], windows: tuple[int, int]
    ) -> None:
        source = Checkpoint.open(checkpoint)
        graphs = lowering.float_graphs(source.config, source.shapes, CompileOptions())
        graphs = {costs.MAIN: graphs[costs.MAIN]}
        self.model, self.judge = (
            costs.experiments(source, graphs, costs.text_windows(checkpoint, each, CALIBRATION_TOKENS, *windows))[
                costs.MAIN
            ]
            for each in (text, other)
        )
        found = mixing.weights_of(graphs.values())
        self.weights = [weight for weight in found if weight.role == "linear"]
        self.layout = targets.get("x86").layout
        self.costs = {name: self._costs(self._measures()[name]) for name in measures}

    def _measures(self) -> dict[str, Callable[[Weight], dict[str, float]]]:
        model = self.model
        return {
            "kl": lambda weight: {name: model.kl(model.rounded(weight, FORMATS[name])) for name in MIXED},
            "scaled": lambda weight: costs.by_error(model, weight, MIXED),
            "error": lambda weight: {name: model.error(model.rounded(weight, FORMATS[name])) for name in MIXED},
            "weight": lambda weight: {name: self._weight_error(weight, name) for name in MIXED},
        }

    def _weight_error(self, weight: Weight, format: str) -> float:
        plain, rounded = (self.model.rounded(weight, FORMATS[name]) for name in ("float32", format))
        apart = sum(float(np.square(rounded[recipe] - w).sum()) for recipe, w in plain.items())
        return apart / sum(float(np.square(w).sum()) for w in plain.values())

    def _costs(self, measure: Callable[[Weight], dict[str, float]]) -> dict[str, dict[str, float]]:
        return {weight.name: measure(weight) for weight in self.weights}

    def nbytes(self, mix: Mix) -> int:
        return sum(weight.nbytes(FORMATS[mix[weight.name]], self.layout) for weight in self.weights)

    def bits(self, mix: Mix) -> float:
        return 8 * self.nbytes(mix) / sum(weight.parameters for weight in self.weights)

    def kl(self, mix: Mix) -> float:
        """What a mix costs as a whole, on the other text."""
        return _together(self.judge, {weight: mix[weight.name] for weight in self.weights})

    def predicted(self, measure: str, mix: Mix) -> float:
        return sum(self.costs[measure][name][format] for name, format in mix.items())

    def allocated(self, measure: str, budget: int) -> Mix:
        choices = [
            [
                Choice(weight.nbytes(FORMATS[name], self.layout), self.costs[measure][weight.name][name])
                for name in MIXED
            ]
            for weight in self.weights
        ]
        best = allocate(choices, budget)
        return {weight.name: MIXED[at] for weight, at in zip(self.weights, best.chosen, strict=True)}

    def uniform(self, format: str) -> Mix:
        return {weight.name: format for weight in self.weights}

    def random(self, rng: np.random.Generator) -> Mix:
        return {weight.name: MIXED[rng.integers(len(MIXED))] for weight in self.weights}

    def of_one_size(self, rng: np.random.Generator, budget: int) -> Mix:
        mix = dict(self.uniform("int4-g128"))
        for at in rng.permutation(len(self.weights)):
            name = self.weights[at].name
            for format in rng.permutation(["int8-g32", "int5-g32"]):
                tried = {**mix, name: str(format)}
                if self.nbytes(tried) <= budget:
                    mix = tried
                    break
        return mix


def _together(model: Experiment, formats: Mapping[Weight, str]) -> float:
    changed = {}
    for weight, name in formats.items():
        changed |= model.rounded(weight, FORMATS[name])
    return model.kl(changed)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--mixes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measures", type=lambda text: text.split(","), default=["kl", "scaled", "error", "weight"])
    parser.add_argument("--sequences", type=int, default=costs.SEQUENCES)
    parser.add_argument("--length", type=int, default=costs.LENGTH)
    args = parser.parse_args()
    windows = args.sequences, args.length
    study = Study(args.checkpoint, args.text, args.other or args.text, args.measures, windows)
    rng = np.random.default_rng(args.seed)
    budget = int(1.08 * study.nbytes(study.uniform("int4-g128")))
    kinds = {
        "random": [study.random(rng) for _ in range(args.mixes)],
        "of one size": [study.of_one_size(rng, budget) for _ in range(args.mixes)],
    }
    report: dict[str, dict[str, object]] = {}
    for kind, mixes in kinds.items():
        true = [study.kl(mix) for mix in mixes]
        for measure in study.costs:
            predicted = [study.predicted(measure, mix) for mix in mixes]
            ratio = float(np.median(np.array(true) / np.array(predicted)))
            report[f"{kind}: {measure}"] = {
                "rank correlation": round(rank_correlation(predicted, true), 3),
                "kl / sum": ratio,
            }
    for format in ("int4-g128", "int4-g64", "int4-g32", "int5-g128"):
        uniform = study.uniform(format)
        size = study.nbytes(uniform)
        row: dict[str, object] = {"bits": round(study.bits(uniform), 3), "uniform": study.kl(uniform)}
        if format != "int4-g128":  # at which nothing is left to choose
            row |= {measure: study.kl(study.allocated(measure, size)) for measure in study.costs}
        report[format] = row
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name, row in report.items():
        print(name.ljust(22), "  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
