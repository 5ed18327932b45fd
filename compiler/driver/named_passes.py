"""Passes as text: `name` or `name:option=value,option=value`, with the fields of the pass as options.

    fuse-mla:form=materialized    quantise:weights=int4-g32    plan-memory:T=512,R=64,S=8,P=128

`spelled` writes all options; what `parse` is not told is as `dsv3c compile` has it by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsv3c.compiler.core.rewrite import Pass
from dsv3c.compiler.core.target import Target
from dsv3c.compiler.errors import BadPassError, UnknownPassError
from dsv3c.compiler.formats.layouts import LAYOUTS
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.options import MAX_BOUND, CompileOptions
from dsv3c.passes.choose_all import ChooseAll
from dsv3c.passes.fuse_index import FuseIndex
from dsv3c.passes.fuse_mla import FuseMla
from dsv3c.passes.fuse_moe import FuseMoe
from dsv3c.passes.fuse_qkv_a import FuseQkvA
from dsv3c.passes.fuse_rms_norm import FuseRmsNorm
from dsv3c.passes.fuse_rope import FuseRope
from dsv3c.passes.fuse_router import FuseRouter
from dsv3c.passes.fuse_swiglu import FuseSwiglu
from dsv3c.passes.pack import Pack
from dsv3c.passes.plan_memory import PlanMemory
from dsv3c.passes.quantise import Quantise
from dsv3c.passes.simplify import Simplify

Options = Mapping[str, str]
_SWITCH = {"true": True, "false": False}
_FORMS = ("absorbed", "materialized")
_MANY_PAGES = 128


@dataclass(frozen=True)
class _Named:
    """make: the pass for all of its options and a target. options: their defaults, "" for what the target has."""

    make: Callable[[Options, Target], Pass]
    options: Options = field(default_factory=dict)


def _quantise(options: Options, target: Target) -> Pass:
    chosen = CompileOptions(
        quant=options["weights"], head_quant=options["head"] or None, embed_quant=options["embedding"] or None
    )
    formats = (chosen.quant, chosen.resolved_head_quant, chosen.resolved_embed_quant)
    weights, head, embedding = (WeightFormat.parse(name).name for name in formats)
    named = {name: WeightFormat.parse(format).name for name, format in options.items() if _is_weight(name)}
    return Quantise(weights, head, embedding, named)


def _is_weight(option: str) -> bool:
    """Whether an option of quantise is the name of a single weight."""
    return "." in option


def _pack(options: Options, target: Target) -> Pass:
    layout = _one_of(options["layout"] or target.layout, LAYOUTS)
    integer = options["integer_activations"]
    return Pack(layout, _SWITCH[_one_of(integer, _SWITCH)] if integer else target.integer_activations)


def _plan_memory(options: Options, target: Target) -> Pass:
    bounds = {name: _size(text) for name, text in options.items()}
    return PlanMemory(bounds, lambda value: target.scratch_bytes(value, bounds))


_DEFAULT = CompileOptions()
_TABLE: Mapping[str, _Named] = {
    Simplify.name: _Named(lambda options, target: Simplify()),
    FuseRmsNorm.name: _Named(lambda options, target: FuseRmsNorm()),
    FuseRope.name: _Named(lambda options, target: FuseRope()),
    FuseQkvA.name: _Named(lambda options, target: FuseQkvA()),
    ChooseAll.name: _Named(lambda options, target: ChooseAll(_size(options["max_context"])), {"max_context": "1"}),
    FuseIndex.name: _Named(lambda options, target: FuseIndex()),
    FuseMla.name: _Named(lambda options, target: FuseMla(_one_of(options["form"], _FORMS)), {"form": _FORMS[0]}),
    FuseRouter.name: _Named(lambda options, target: FuseRouter()),
    FuseMoe.name: _Named(lambda options, target: FuseMoe()),
    FuseSwiglu.name: _Named(lambda options, target: FuseSwiglu()),
    Quantise.name: _Named(_quantise, {"weights": _DEFAULT.quant, "head": "", "embedding": ""}),
    Pack.name: _Named(_pack, {"layout": "", "integer_activations": ""}),
    PlanMemory.name: _Named(
        _plan_memory,
        {
            "T": str(_DEFAULT.max_tokens),
            "R": str(_DEFAULT.max_rows),
            "S": str(_DEFAULT.max_sequences),
            "P": str(_MANY_PAGES),
        },
    ),
}
KNOWN = tuple(_TABLE)


def parse(text: str, target: Target) -> Pass:
    """The pass that `text` names; the target gives what is not chosen. Raises UnknownPassError, BadPassError,
    UnknownWeightFormat."""
    name, _, rest = text.partition(":")
    if name not in _TABLE:
        raise UnknownPassError(name=name, known=", ".join(KNOWN))
    named, given = _TABLE[name], dict[str, str]()
    for item in rest.split(",") if rest else ():
        option, equals, value = item.partition("=")
        known_option = option in named.options or (name == Quantise.name and _is_weight(option))
        if not known_option or not (equals and value):
            known = ", ".join(f"{option}=…" for option in named.options) or "none"
            raise BadPassError(text=text, reason=f"{item!r} is none of its options: {known}")
        given[option] = value
    try:
        return named.make({**named.options, **given}, target)
    except ValueError as error:
        raise BadPassError(text=text, reason=str(error)) from error


def spelled(item: Pass) -> str:
    """The text that `parse` makes the same pass of; what it asks of the target is the target's."""
    options = ",".join(part for name, value in vars(item).items() for part in _parts(name, value))
    return f"{item.name}:{options}" if options else item.name


def _parts(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):  # sizes by the name of a dim, or formats by that of a weight
        return [f"{key}={size}" for key, size in value.items()]
    if isinstance(value, bool):
        return [f"{name}={str(value).lower()}"]
    return [] if callable(value) else [f"{name}={value}"]


def _one_of(text: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    if text not in known:
        raise ValueError(f"{text!r} is none of {', '.join(known)}")
    return text


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_BOUND):
        raise ValueError(f"{text!r} is no number from 1 to {MAX_BOUND}")
    return int(text)
