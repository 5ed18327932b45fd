"""What becomes of the codes of a checkpoint that is quantised: which formats keep them, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.expected import HEAD
from dsv3c.compiler.checkpoint.files import some
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.driver.weights import Read
from dsv3c.compiler.formats.keeping import Loss
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.passes.quantise import turned

Recipes = Mapping[str, Value]


def settle(options: CompileOptions, source: Checkpoint, supported: Callable[[WeightFormat], bool]) -> CompileOptions:
    """The options with `kept` filled in where it is None: for each tensor in codes the smallest format that keeps them,
    of those that are `supported`."""
    if options.kept is not None:
        return options
    codings = {name: coding for name in source.shapes if (coding := source.coding(name)) is not None}
    formats = {coding: coding.format(supported) for coding in set(codings.values())}
    found = {name: format.name for name, coding in codings.items() if (format := formats[coding]) is not None}
    if options.head_quant is not None:
        found.pop(HEAD, None)
    return replace(options, kept=found)


def formats(options: CompileOptions) -> list[str]:
    """The formats of linear weights: those that keep codes, the most common one first, then the one of all others."""
    common = [name for name, _ in Counter((options.kept or {}).values()).most_common()]
    return list(dict.fromkeys((*common, options.quant)))


def reader(source: Checkpoint, recipes: Recipes) -> Read:
    """Reads in codes what a recipe can keep, as float32 what none can."""
    in_codes = {name for name, _, keeps in _uses(source, recipes) if keeps}

    def read(name: str, expert: int | None) -> Any:
        if name in in_codes:
            return source.coded(name, expert)
        return source.read(name) if expert is None else source.part(name, expert)

    return read


def notes(source: Checkpoint, recipes: Recipes) -> tuple[str, ...]:
    """Of a checkpoint in codes: what keeps them and what is rounded a second time."""
    whole: dict[str, dict[str, None]] = {}
    again: dict[str, dict[str, None]] = {}
    for name, format, keeps in _uses(source, recipes):
        if keeps or format.has_codes:
            (whole if keeps else again).setdefault(format.name, {})[name] = None
    said = [f"{_quantised(source, names)} keep their codes, in {format}" for format, names in whole.items()]
    said += [
        f"{_quantised(source, names)} are rounded a second time, to {format}: {some(list(names))}"
        for format, names in again.items()
    ]
    return tuple(said)


def loss_notes(recipes: Recipes, losses: Mapping[str, Loss]) -> tuple[str, ...]:
    """What single codes and scales lost in formats that keep such codes as a rule."""
    said = []
    rows = {recipe: loss.rows for recipe, loss in losses.items() if loss.rows and not turned(recipes[recipe])}
    if rows:
        which = some([name for recipe in rows for name in _tensors(recipes[recipe])])
        said.append(
            f"{sum(rows.values())} rows of quantised weights do not fit and were rounded a second time: {which}"
        )
    scales = {recipe: loss.scales for recipe, loss in losses.items() if loss.scales}
    if scales:
        which = some([name for recipe in scales for name in _tensors(recipes[recipe])])
        said.append(f"{sum(scales.values())} scales are not exact in float16 and were rounded: {which}")
    return tuple(said)


def _uses(source: Checkpoint, recipes: Recipes) -> list[tuple[str, WeightFormat, bool]]:
    """Each tensor in codes, the format of a recipe it is in, and whether that keeps its codes."""
    found = []
    for recipe in recipes.values():
        quantized = next((value for value in topological_order([recipe]) if value.op == "quantize"), None)
        if quantized is None:
            continue
        format, (weight,) = WeightFormat.parse(str(quantized.attrs["format"])), quantized.inputs
        across = turned(weight) and not format.keeps_fp8  # whose blocks are square
        codings = ((name, source.coding(name)) for name in _tensors(weight))
        found += [(name, format, not across and each.fits(format)) for name, each in codings if each is not None]
    return found


def _tensors(value: Value) -> list[str]:
    """Names of the checkpoint's tensors that a recipe is made of."""
    return sorted({str(leaf.attrs["name"]) for leaf in topological_order([value]) if leaf.op == "param"})


def _quantised(source: Checkpoint, names: Mapping[str, None]) -> str:
    codings = "; ".join(sorted({str(source.coding(name)) for name in names}))
    return f"{len(names)} weights that the checkpoint has quantised ({codings})"
