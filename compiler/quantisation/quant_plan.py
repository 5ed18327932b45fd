"""quant-plan.json: the format of each weight, for a person to read, change and give back.

    {"weights": {
      "layers.3.experts.gate_up": {"format": "int4-g64", "parameters": 1114112, "bits_per_weight": 4.25, …},
      "layers.*.attention.*": "int5-g32"
    }}

A key is the name of a weight (core.weight_names) or a pattern with `*`; a value is a format, or an object that has it
as `format` and says more for the reader, which is not looked at. A name goes before patterns, and of these the last
one counts. What no key names has the format that --quant, --head-quant and --embed-quant say.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dsv3c.compiler.core.ir import TensorType, Value
from dsv3c.compiler.core.storage import aligned, components
from dsv3c.compiler.core.weight_names import EMBEDDING
from dsv3c.compiler.errors import (
    Dsv3cError,
    ForeignFileError,
    PlanFormatError,
    PlanFormatRefusedError,
    PlanInvalidError,
    PlanNameError,
)
from dsv3c.compiler.formats import rows
from dsv3c.compiler.formats.layouts import LAYOUTS
from dsv3c.compiler.formats.table import FORMATS, UnknownWeightFormat, WeightFormat, listed
from dsv3c.runtime.artifact import strict_json
from dsv3c.runtime.artifact.jsonfile import read_bytes

NAME = "quant-plan.json"
MAX_BYTES = 16 << 20
_MAX_VALUES = 1_000_000
_NEAREST = 3

Supports = Callable[[WeightFormat, str], bool]


@dataclass(frozen=True)
class Weight:
    """A weight that has one format. recipes: what is stored of it, f32[..., N, K] each. parameters: its numbers, each
    once. operations: those of the IR that it is an operand of. role: linear, head or embedding."""

    name: str
    role: str
    recipes: tuple[Value, ...]
    parameters: int
    operations: frozenset[str]

    def nbytes(self, format: WeightFormat, layout: str) -> int:
        """What it takes in the weights file of a target with this layout."""
        return sum(_stored_bytes(recipe, format, layout, self.role == EMBEDDING) for recipe in self.recipes)


@dataclass(frozen=True)
class PlannedWeight:
    """One row of a plan. sensitivity: what the format costs, in the plan's measure; None where it is not measured."""

    weight: Weight
    format: str
    nbytes: int
    sensitivity: float | None = None

    @property
    def bits(self) -> float:
        """Stored bits for each parameter."""
        return 8 * self.nbytes / self.weight.parameters


@dataclass(frozen=True)
class QuantPlan:
    """The rows of a plan in the order of the computation, and `facts` about how it came about, for the reader."""

    rows: tuple[PlannedWeight, ...]
    facts: Mapping[str, Any]

    def formats(self) -> dict[str, str]:
        return {row.weight.name: row.format for row in self.rows}

    def to_json(self) -> dict[str, Any]:
        return {**self.facts, "weights": {row.weight.name: _row_json(row) for row in self.rows}}

    def text(self) -> str:
        """One weight a line, so that it can be changed by hand and compared."""
        facts = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in self.facts.items()]
        rows = [f"  {json.dumps(row.weight.name)}: {json.dumps(_row_json(row))}" for row in self.rows]
        return "\n".join(["{", *facts, ' "weights": {', ",\n".join(rows), " }", "}"]) + "\n"

    def bits(self) -> float:
        """Stored bits for each parameter of all linear weights."""
        chosen = [row for row in self.rows if row.weight.role == "linear"]
        return 8 * sum(row.nbytes for row in chosen) / max(1, sum(row.weight.parameters for row in chosen))


def read(path: Path, weights: Sequence[Weight], supports: Supports, target: str) -> dict[str, str]:
    """The formats that a plan gives to `weights`, by name; not all need to be there.

    supports(format, operation) says what the target has. Raises PlanInvalidError, PlanNameError, PlanFormatError,
    PlanFormatRefusedError, and a RuntimeFault for what is no readable file.
    """
    chosen = parse(read_bytes(path, MAX_BYTES), path)
    found: dict[str, str] = {}
    for exact in (False, True):
        for key, format in chosen.items():
            if ("*" not in key) == exact:
                found |= dict.fromkeys(_named(key, weights, path), format)
    for weight in weights:
        if weight.name in found:
            _require_supported(weight, found[weight.name], supports, path, target)
    return found


def check_replaceable(path: Path) -> None:
    """Raises ForeignFileError for a file that is there and is no plan, and for what is no file."""
    if not os.path.lexists(path):
        return
    try:
        parse(read_bytes(path, MAX_BYTES), path)
    except Dsv3cError as error:
        raise ForeignFileError(path=path, kind="a plan of formats") from error


def parse(data: bytes, path: Path) -> dict[str, str]:
    """The formats by key, as a plan has them. Raises PlanInvalidError, PlanFormatError."""
    try:
        content = strict_json.parse(data, _MAX_VALUES)
    except ValueError as error:
        raise PlanInvalidError(path=path, reason=str(error)) from error
    rows = content.get("weights") if isinstance(content, dict) else None
    if not isinstance(rows, dict):
        raise PlanInvalidError(path=path, reason='it has no object "weights"')
    return {key: _format(key, row, path) for key, row in rows.items()}


def _format(key: str, row: object, path: Path) -> str:
    format = row.get("format") if isinstance(row, dict) else row
    if not isinstance(format, str):
        reason = f"{strict_json.quote(key)} is {strict_json.quote(row)}, neither a format nor an object that has one"
        raise PlanInvalidError(path=path, reason=reason)
    try:
        return WeightFormat.parse(format).name
    except UnknownWeightFormat as error:
        raise PlanFormatError(path=path, name=key, format=strict_json.quote(format), known=listed()) from error


def _named(key: str, weights: Sequence[Weight], path: Path) -> list[str]:
    names = [weight.name for weight in weights]
    found = [name for name in names if (fnmatchcase(name, _pattern(key)) if "*" in key else name == key)]
    if not found:
        nearest = difflib.get_close_matches(key, names, _NEAREST, cutoff=0) if len(key) < 200 else names[:_NEAREST]
        raise PlanNameError(path=path, name=strict_json.quote(key), nearest=", ".join(nearest))
    return found


def _pattern(key: str) -> str:
    """Only `*` is special."""
    return key.replace("[", "[[]").replace("?", "[?]")


def _require_supported(weight: Weight, name: str, supports: Supports, path: Path, target: str) -> None:
    known = supported(weight, supports)
    if name not in known:
        raise PlanFormatRefusedError(path=path, name=weight.name, format=name, target=target, known=listed(known))


def supported(weight: Weight, supports: Supports) -> list[str]:
    """The formats that a target has for all operations of a weight."""
    names = rows.format_names() if weight.role == EMBEDDING else FORMATS
    return [name for name in names if all(supports(FORMATS[name], each) for each in weight.operations)]


def _stored_bytes(recipe: Value, format: WeightFormat, layout: str, unpacked: bool) -> int:
    if unpacked:
        layout = ""
    elif not layout:  # the target hands weights on: in the one layout of standard operators, or as they are
        layout = next((name for name in LAYOUTS if name in format.packings and name != "rows16"), "")
    type = TensorType(format.type_name, recipe.shape, layout if layout in format.packings else "")
    return sum(aligned(component.nbytes) for component in components(type, {}))


def _row_json(row: PlannedWeight) -> dict[str, Any]:
    found: dict[str, Any] = {
        "format": row.format,
        "parameters": row.weight.parameters,
        "bits_per_weight": round(row.bits, 3),
        "bytes": row.nbytes,
    }
    return found if row.sensitivity is None else found | {"sensitivity": float(f"{row.sensitivity:.4g}")}
