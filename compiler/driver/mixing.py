"""A format for each weight: from a plan that a person gives, or found for a budget by what each format costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.core.ir import Graph, topological_order
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.core.weight_names import EMBEDDING, HEAD
from dsv3c.compiler.driver import costs
from dsv3c.compiler.errors import BudgetError
from dsv3c.compiler.formats.table import FORMATS, WeightFormat
from dsv3c.compiler.options import AUTO, CompileOptions
from dsv3c.compiler.quantisation import quant_plan
from dsv3c.compiler.quantisation.allocation import Choice, allocate
from dsv3c.compiler.quantisation.calibration.text import CalibrationText
from dsv3c.compiler.quantisation.quant_plan import PlannedWeight, QuantPlan, Weight
from dsv3c.passes.quantise import LINEAR, ROUTER, Operand, keeping_format, operands
from dsv3c.runtime.cli.output import size
from dsv3c.runtime.progress import Progress

FileBytes = Callable[[CompileOptions], int]
_ROUNDS = 5  # in which the header and what else is not a weight settle


def weights_of(graphs: Iterable[Graph]) -> list[Weight]:
    """The weights that have a format to choose, in the order of the computation; each has its recipes of all graphs."""
    found: dict[str, list[Operand]] = {}
    for graph in graphs:
        for operand in operands(graph):
            if operand.role != ROUTER:
                found.setdefault(operand.name, []).append(operand)
    return [_weight(name, uses) for name, uses in found.items()]


def settled(
    source: Checkpoint,
    graphs: Mapping[str, Graph],
    options: CompileOptions,
    target: Target,
    progress: Progress,
    file_bytes: FileBytes,
    text: CalibrationText | None = None,
    folder: Path | None = None,
    costing: costs.Measure = costs.measured,
) -> tuple[CompileOptions, QuantPlan]:
    """The options with a format for each weight, and the plan of it. file_bytes: the size of the weights file.

    graphs: the entries before any weight has a format. text, folder: as in costs.measured. costing: what formats are
    chosen by. Raises PlanError,
    BudgetError, and what reading a plan or the calibration raises.
    """
    weights = weights_of(graphs.values())
    if options.quant == AUTO:

        def measure(linear: Sequence[Weight], sizes: costs.Sizes) -> costs.Costs:
            return costing(source, graphs, linear, sizes, options, text, progress, folder)

        return _found(weights, options, target, progress, file_bytes, measure)
    path = options.quant_plan
    assert path is not None
    chosen = quant_plan.read(path, weights, target.supports, target.name)
    options = _with_formats(options, weights, chosen)
    return options, QuantPlan(_rows(weights, options, target), {"from": path.name})


def described(graphs: Mapping[str, Graph], options: CompileOptions, target: Target) -> QuantPlan:
    """The plan of options that are settled."""
    return QuantPlan(_rows(weights_of(graphs.values()), options, target), {})


def _weight(name: str, uses: Sequence[Operand]) -> Weight:
    recipes = tuple(dict.fromkeys(use.weight for use in uses))
    shapes = {str(leaf.attrs["name"]): leaf.shape for leaf in topological_order(recipes) if leaf.op == "param"}
    parameters = sum(math.prod(map(int, shape)) for shape in shapes.values())
    return Weight(name, uses[0].role, recipes, parameters, frozenset(use.user.op for use in uses))


def _with_formats(options: CompileOptions, weights: Sequence[Weight], chosen: Mapping[str, str]) -> CompileOptions:
    """The formats of a plan; what the options say of head and embedding goes before it."""
    formats = {weight.name: chosen[weight.name] for weight in weights if weight.name in chosen}
    head, embedding = (formats.pop(name, None) for name in (HEAD, EMBEDDING))
    return replace(
        options,
        formats=formats,
        head_quant=options.head_quant or head,
        embed_quant=options.embed_quant or embedding,
    )


def _rows(
    weights: Sequence[Weight], options: CompileOptions, target: Target, found: costs.Costs | None = None
) -> tuple[PlannedWeight, ...]:
    by_role = {
        LINEAR: options.resolved_quant,
        HEAD: options.resolved_head_quant,
        EMBEDDING: options.resolved_embed_quant,
    }

    def row(weight: Weight) -> PlannedWeight:
        keeping = None if weight.role == EMBEDDING else keeping_format(weight.recipes[0], options.kept or {})
        format = options.formats.get(weight.name) or keeping or by_role[weight.role]
        cost = found.by_weight.get(weight.name, {}).get(format) if found else None
        return PlannedWeight(weight, format, weight.nbytes(WeightFormat.parse(format), target.layout), cost)

    return tuple(map(row, weights))


class _Budget(NamedTuple):
    """How many bytes the linear weights may take; as a person gave it: of what, how much, by which option."""

    nbytes: int
    what: str
    given: str
    option: str


def _found(
    weights: Sequence[Weight],
    options: CompileOptions,
    target: Target,
    progress: Progress,
    file_bytes: FileBytes,
    measure: Callable[[Sequence[Weight], costs.Sizes], costs.Costs],
) -> tuple[CompileOptions, QuantPlan]:
    """The plan that costs least within the budget."""
    linear = [weight for weight in weights if weight.role == LINEAR]
    sizes = {weight.name: _sizes(weight, target) for weight in linear}
    smallest = {name: min(of, key=of.__getitem__) for name, of in sizes.items()}
    least_bytes = sum(sizes[name][format] for name, format in smallest.items())
    parameters = sum(weight.parameters for weight in linear)

    def rest(formats: Mapping[str, str], nbytes: int) -> int:
        """What the file has besides: 0 for a budget that is of the weights alone."""
        return 0 if options.max_size is None else file_bytes(replace(options, formats=formats)) - nbytes

    beside = rest(smallest, least_bytes)
    budget = _budget(options, parameters) - beside
    if budget < least_bytes:
        raise _too_little(options, least_bytes + beside, parameters)
    found = measure(linear, sizes)
    progress.stage("choosing formats")
    names = {weight: list(of) for weight, of in found.by_weight.items()}
    choices = [
        [Choice(sizes[weight][name], cost) for name, cost in of.items()] for weight, of in found.by_weight.items()
    ]
    for _ in range(_ROUNDS):
        best = allocate(choices, budget)
        formats = {weight: names[weight][at] for weight, at in zip(names, best.chosen, strict=True)}
        over = best.nbytes + rest(formats, best.nbytes) - _budget(options, parameters)
        if over <= 0:
            break
        budget = max(least_bytes, budget - over)
    options = replace(options, formats=formats)
    facts = {
        "budget": _given(options),
        "measure": found.measure,
        "cost": float(f"{best.cost:.4g}"),
        "no_mix_costs_less_than": float(f"{best.bound:.4g}"),
        "linear_bits_per_weight": round(8 * best.nbytes / parameters, 4),
    }
    return options, QuantPlan(_rows(weights, options, target, found), facts)


def _sizes(weight: Weight, target: Target) -> dict[str, int]:
    """The bytes of a weight in the formats that are tried for it."""
    return {name: weight.nbytes(FORMATS[name], target.layout) for name in candidates(weight, target)}


def candidates(weight: Weight, target: Target) -> list[str]:
    """The formats that are tried for a weight: what the target has for it; fp8 is for checkpoints that are in it."""
    return [name for name in quant_plan.supported(weight, target.supports) if not FORMATS[name].keeps_fp8]


def _budget(options: CompileOptions, parameters: int) -> int:
    if options.max_size is not None:
        return options.max_size
    assert options.target_bpw is not None
    return int(options.target_bpw * parameters / 8)


def _given(options: CompileOptions) -> str:
    if options.max_size is not None:
        return f"{options.max_size} bytes in the weights file"
    return f"{options.target_bpw:g} bits for each linear weight"


def _too_little(options: CompileOptions, nbytes: int, parameters: int) -> BudgetError:
    if options.max_size is None:
        budget, possible = f"{options.target_bpw:g} bits each", f"{math.ceil(800 * nbytes / parameters) / 100} bits"
        what, option, otherwise = "the linear weights", "--target-bpw", ""
    else:
        budget, possible = (f"{size(count)} ({count} bytes)" for count in (options.max_size, nbytes))
        what, option = "the weights file", "--max-size"
        otherwise = ", or choose smaller formats for the rest: --head-quant, --embed-quant"
    return BudgetError(what=what, budget=budget, least=possible, option=option, otherwise=otherwise)
