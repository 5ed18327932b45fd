"""Adapters of stacked experts: PEFT's `target_parameters` for the parameters that transformers 5 holds.

`M.gate_up_proj` [E, 2I, D] and `M.down_proj` [E, D, I] have factors under the same names, those of one parameter in a
further `.base_layer`; which is which follows from the shapes. A is [E·r, inputs], an expert's rows together; B is
[outputs, r·E], an expert's columns E apart (`ParamWrapper.get_delta_weight`). Up to 0.19.0 PEFT took the rows of such a
parameter for inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dsv3c.compiler.checkpoint.catalog import LogicalTensor
from dsv3c.compiler.checkpoint.errors import TensorDtypeError, TensorShapeError
from dsv3c.compiler.checkpoint.files import quote
from dsv3c.compiler.checkpoint.lora.config import AdapterConfig
from dsv3c.compiler.checkpoint.lora.delta import Delta, Factor
from dsv3c.compiler.checkpoint.lora.errors import AdapterRankError, AdapterUnsupportedError
from dsv3c.compiler.checkpoint.stored import FLOAT_DTYPES, StoredTensor

_WRAPPED = re.compile(r"(\.base_layer)+$")


@dataclass(frozen=True)
class Stack:
    """A parameter of stacked experts, [count, rows, columns]. parts: logical tensors with the rows they have of it."""

    module: str
    name: str
    count: int
    rows: int
    columns: int
    parts: tuple[tuple[str, int, int], ...]


def stacks(module: str, entries: Mapping[str, LogicalTensor]) -> tuple[Stack, ...]:
    """The parameters of a module; none where it holds no experts."""
    module = _WRAPPED.sub("", module)
    gate, up, down = (f"{module}.*.{part}_proj.weight" for part in ("gate", "up", "down"))
    if gate not in entries:
        return ()
    count, inner, hidden = entries[gate].shape
    return (
        Stack(module, "gate_up_proj", count, 2 * inner, hidden, ((gate, 0, inner), (up, inner, 2 * inner))),
        Stack(module, "down_proj", count, hidden, inner, ((down, 0, hidden),)),
    )


def deltas(
    found: Sequence[Stack], a: StoredTensor, b: StoredTensor, config: AdapterConfig, scale: float
) -> Iterator[tuple[tuple[str, int], Delta]]:
    """What the factors add to each expert of the parameter that they fit.

    Raises AdapterRankError, TensorShapeError, TensorDtypeError, AdapterUnsupportedError where the shapes leave open
    which way they lie and the version of PEFT is not known.
    """
    stack, as_stored = _fitting(found, a, b, config)
    key = f"{stack.module}.{stack.name}"
    rank, scale = config.rank_of(key), scale * config.scale_of(key)
    inputs, outputs = (stack.columns, stack.rows) if as_stored else (stack.rows, stack.columns)
    checked(a, 0, (rank * stack.count, inputs), stack.count)
    checked(b, 1, (outputs, rank * stack.count), stack.count)
    for projection, first, last in stack.parts:
        for index in range(stack.count):
            own, every = slice(index * rank, (index + 1) * rank), slice(index, None, stack.count)
            rows = slice(first, last)
            if as_stored:
                yield (projection, index), Delta(Factor(b, rows, every), Factor(a, own), scale)
            else:
                left, right = Factor(a, own, rows, turned=True), Factor(b, columns=every, turned=True)
                yield (projection, index), Delta(left, right, scale)


def _fitting(found: Sequence[Stack], a: StoredTensor, b: StoredTensor, config: AdapterConfig) -> tuple[Stack, bool]:
    """The parameter, and whether its rows are outputs."""
    sizes = (a.info.shape[-1:], b.info.shape[:1])
    ways = [
        (stack, as_stored)
        for stack in found
        for as_stored in (True, False)
        if sizes == (((stack.columns,), (stack.rows,)) if as_stored else ((stack.rows,), (stack.columns,)))
    ]
    if not ways:
        expected = " or ".join(f"[…, {stack.columns}] of {stack.name}" for stack in found)
        shape = str(list(a.info.shape))
        raise TensorShapeError(path=a.file.path, tensor=a.info.name, found=shape, expected=expected)
    if len(ways) == 1:
        return ways[0]
    if config.stored_as_is is None:
        reason = "its shapes leave open whether rows are outputs, and adapter_config.json has no peft_version"
        raise AdapterUnsupportedError(path=a.file.path, what=quote(a.info.name), reason=reason)
    return next(way for way in ways if way[1] == config.stored_as_is)


def checked(tensor: StoredTensor, axis: int, shape: tuple[int, int], times: int = 1) -> StoredTensor:
    """The factor, whose `axis` is that of the rank, here so many times. Raises TensorDtypeError, TensorShapeError, and
    AdapterRankError where all but the rank is right."""
    info, path = tensor.info, tensor.file.path
    if info.dtype not in FLOAT_DTYPES:
        expected = " or ".join(FLOAT_DTYPES)
        raise TensorDtypeError(path=path, tensor=info.name, found=info.dtype, expected=expected)
    if info.shape == shape:
        return tensor
    rank_alone = len(info.shape) == 2 and info.shape[1 - axis] == shape[1 - axis] and info.shape[axis] % times == 0
    if rank_alone:
        found, wanted = info.shape[axis] // times, shape[axis] // times
        raise AdapterRankError(path=path, tensor=quote(info.name), found=found, expected=wanted)
    raise TensorShapeError(path=path, tensor=info.name, found=str(list(info.shape)), expected=str(list(shape)))
