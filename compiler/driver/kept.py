"""What becomes of the codes of a checkpoint that is quantised: which formats keep them, and what is said of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsv3c.compiler.checkpoint import Checkpoint
from dsv3c.compiler.checkpoint.expected import HEAD
from dsv3c.compiler.checkpoint.files import some
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.formats.keeping import Coding, Loss
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import CompileOptions
from dsv3c.passes.quantise import turned

Recipes = Mapping[str, Value]
_KEPT, _AGAIN, _FIRST = "codes are kept, in", "rounded a second time, to", "rounded to"
_MANY = 3  # formats, as in a plan of mixed precision, which says itself what has which


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


class Reader:
    """Reads in codes what a recipe can keep, the tensors `in_codes`, and as float32 what none can."""

    def __init__(self, source: Checkpoint, recipes: Recipes) -> None:
        self._source = source
        self.in_codes = frozenset(use.name for use in _uses(source, recipes) if use.keeps)

    def __call__(self, name: str, expert: int | None) -> Any:
        if name in self.in_codes:
            return self._source.coded(name, expert)
        return self._source.read(name) if expert is None else self._source.part(name, expert)


def notes(source: Checkpoint, recipes: Recipes) -> tuple[str, ...]:
    """Of a checkpoint in codes: what keeps them, what is rounded a second time, and what was not in codes."""
    uses = [use for use in _uses(source, recipes) if use.format.has_codes]
    if not any(use.coding for use in uses):
        return ()
    said: dict[tuple[str, str], list[_Use]] = {}
    for use in uses:
        what = _KEPT if use.keeps else _AGAIN if use.coding else _FIRST
        said.setdefault((what, use.format.name), []).append(use)
    if not any(use.keeps for use in uses):  # as was asked for: which they are goes without saying
        again = {format: found for (what, format), found in said.items() if what == _AGAIN}
        if len(again) > _MANY:
            every = [use for found in again.values() for use in found]
            return (f"{_AGAIN} {len(again)} formats: {_told(every)}",)
        return tuple(f"{_AGAIN} {format}: {_told(found)}" for format, found in again.items())
    return tuple(
        f"{what} {format}: {_told(found)}{_listed(what, found)}"
        for kind in (_KEPT, _AGAIN, _FIRST)
        for (what, format), found in said.items()
        if what == kind
    )


def loss_notes(recipes: Recipes, losses: Mapping[str, Loss]) -> tuple[str, ...]:
    """What single codes and scales lost in formats that keep such codes as a rule."""
    rows = {recipe: loss.rows for recipe, loss in losses.items() if loss.rows and not turned(recipes[recipe])}
    scales = {recipe: loss.scales for recipe, loss in losses.items() if loss.scales}
    kinds = (("rounded a second time, as they do not fit", "row", rows), ("not exact in float16", "scale", scales))
    names = {recipe: _tensors(recipes[recipe]) for recipe in losses}
    return tuple(
        f"{what}: {_count(sum(counts.values()), unit)} of {some([name for each in counts for name in names[each]])}"
        for what, unit, counts in kinds
        if counts
    )


@dataclass(frozen=True)
class _Use:
    """A tensor of the checkpoint in a recipe that quantises. keeps: whether its codes stay what they are."""

    name: str
    coding: Coding | None
    format: WeightFormat
    keeps: bool


def _uses(source: Checkpoint, recipes: Recipes) -> list[_Use]:
    found: dict[_Use, None] = {}
    for recipe in recipes.values():
        quantized = next((value for value in topological_order([recipe]) if value.op == "quantize"), None)
        if quantized is None:
            continue
        format, (weight,) = WeightFormat.parse(str(quantized.attrs["format"])), quantized.inputs
        across = turned(weight)
        codings = {name: source.coding(name) for name in _tensors(weight)}
        for name, coding in codings.items():
            # Stacked experts are rounded one by one; what is joined in one piece must be of one kind.
            kinds = {each and each.kind for other, each in codings.items() if ("*" in other) == ("*" in name)}
            keeps = coding is not None and (coding.square or not across) and len(kinds) == 1 and coding.fits(format)
            found[_Use(name, coding, format, keeps)] = None
    return list(found)


def _tensors(value: Value) -> list[str]:
    """Names of the checkpoint's tensors that a recipe is made of."""
    return sorted({str(leaf.attrs["name"]) for leaf in topological_order([value]) if leaf.op == "param"})


def _told(uses: Sequence[_Use]) -> str:
    stored = "; ".join(sorted({str(use.coding) for use in uses if use.coding})) or "floats"
    return f"{_count(len(uses), 'tensor')} of the checkpoint ({stored})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(what: str, uses: Sequence[_Use]) -> str:
    return f": {some([use.name for use in uses])}" if what == _AGAIN else ""
