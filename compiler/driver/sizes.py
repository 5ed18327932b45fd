"""How large the parts of a compiled model are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.checkpoint.parts import PARTS, part_of
from dsv3c.compiler.core.ir import Value, topological_order
from dsv3c.compiler.core.ops.weight import format_of
from dsv3c.compiler.driver.weights import WeightFile


@dataclass(frozen=True)
class ModelPart:
    """nbytes: as stored, scales included. weights: how many numbers. format: of the weights, the most common first."""

    nbytes: int
    weights: int
    format: str


def model_parts(config: ModelConfig, file: WeightFile) -> dict[str, ModelPart]:
    """The parts of a laid out weight file, in the order of PARTS, then "other" for what comes from no tensor.

    A recipe over tensors of several parts (shared experts beside routed ones) is shared out by their weights. A tensor
    that several recipes use counts once.
    """
    nbytes: dict[str, float] = {}
    formats: dict[str, dict[str, float]] = {}
    tensors: dict[str, int] = {}
    for recipe, value in file.recipes.items():
        params = _params(value)
        tensors |= params
        total = sum(params.values())
        stored, format = file.component_bytes(recipe), format_of(value.type)
        shares = {name: stored * count / total for name, count in params.items()} or {"": stored}
        for name, share in shares.items():
            part = part_of(name, config.num_hidden_layers) if name else "other"
            nbytes[part] = nbytes.get(part, 0) + share
            by_format = formats.setdefault(part, {})
            by_format[format.name] = by_format.get(format.name, 0) + share
    counts: dict[str, int] = {}
    for name, count in tensors.items():
        part = part_of(name, config.num_hidden_layers)
        counts[part] = counts.get(part, 0) + count
    order = [part for part in (*PARTS, "other") if part in nbytes]
    return {part: ModelPart(round(nbytes[part]), counts.get(part, 0), _formats(formats[part])) for part in order}


def _params(value: Value) -> dict[str, int]:
    """The tensors of the checkpoint that a recipe reads, and how many numbers each has."""
    leaves = (leaf for leaf in topological_order([value]) if leaf.op == "param")
    return {str(leaf.attrs["name"]): math.prod(int(dim) for dim in leaf.shape) for leaf in leaves}


def _formats(sizes: Mapping[str, float]) -> str:
    return ", ".join(sorted(sizes, key=lambda name: -sizes[name]))
