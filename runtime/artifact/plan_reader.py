"""plan.json as read: what a `Plan` is made of once every index, offset and bound of it is in range.

Kernels trust the plan blindly, so nothing may be mapped, allocated or run before this module has accepted it. Keys that
this version does not know are ignored; a newer `version` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from dsv3c.runtime.artifact.costs import Cost, parse_cost
from dsv3c.runtime.artifact.dispatches import parse_table
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.plan import (
    DRAW_WORDS,
    ELEMENT_BYTES,
    NEVER,
    PLAN_VERSION,
    Bounds,
    Buffer,
    Call,
    Cut,
    Entry,
    Output,
    Plan,
)
from dsv3c.runtime.artifact.weights import ALIGNMENT, Tensor
from dsv3c.runtime.errors import FormatNewer, PlanInvalid

# bfloat16 is stored as its bit pattern, under either name.
_STORAGE = {"bfloat16": "uint16"}
_KINDS = ("input", "cache", "arena", "weight")
_COUNTED = {"T": "tokens", "R": "rows"}
_ROWS = {"logits": "R", "token": "R", "hidden": "T"}  # as a session reads them
_CACHE_NAME = re.compile(r"cache\.(0|[1-9][0-9]{0,5})(\.[a-z][a-z0-9_]*)?")
_LAYER = re.compile(r"0|[1-9][0-9]{0,5}")
_MOST_WIDTH = 2**20
_MOST_SLOT_BYTES = 2**30  # of all caches: with 2**31 slots, sizes are far below 64 bits


def parse_plan(content: Any, tensors: Mapping[str, Tensor], vocab_size: int, path: str = "plan.json") -> Plan:
    """Checked plan. Raises PlanInvalid, or FormatNewer for a version this runtime does not know yet."""
    fields = Fields(content, "plan", PlanInvalid)
    version = fields.integer("version", 1, 2**31)
    if version > PLAN_VERSION:
        raise FormatNewer(path=path, found=version, known=PLAN_VERSION, writer="unknown")
    bounds = _bounds(fields.object("bounds"))
    arena_bytes = fields.integer("arena_bytes", 0, 2**44)
    listed = [Fields(value, f"buffers[{i}]", PlanInvalid) for i, value in enumerate(fields.list("buffers"))]
    if version == 1:
        listed = _with_caches_of_version_1(fields, listed)
    buffers = tuple(_buffer(buffer, arena_bytes, tensors) for buffer in listed)
    page_size = fields.integer("page_size", 1, 2**16)
    if bounds.P * page_size > 2**31 - 1:
        raise fields.fail("page_size", "a sequence would hold more tokens than a 32-bit position can count")
    _check_inputs(buffers, bounds)
    _check_caches(buffers)
    entries = fields.object("entries")
    parsed = {name: _entry(name, entries.object(name), buffers, bounds, vocab_size) for name in entries.value}
    if "sampling" in fields.value:
        parsed |= _drawn(fields.object("sampling"), parsed, buffers, bounds)
    if not {"decode", "prefill"} & parsed.keys():
        raise fields.fail("entries", "has neither `decode` nor `prefill`")
    _check_cache_operands(parsed, buffers)
    frozen = MappingProxyType(parsed)
    costs = _costs(fields.object("costs")) if "costs" in fields.value else None
    dispatches = parse_table(fields, _operands(parsed)) if "dispatches" in fields.value else None
    return Plan(bounds, page_size, arena_bytes, buffers, frozen, costs, dispatches)


def _operands(entries: Mapping[str, Entry]) -> dict[str, int]:
    """How many operands each kernel has, which is called with as many everywhere. Raises PlanInvalid."""
    counts: dict[str, int] = {}
    for entry in entries.values():
        for kernel, buffers in entry.calls:
            if counts.setdefault(kernel, len(buffers)) != len(buffers):
                raise PlanInvalid(
                    where=f"plan.dispatches.{kernel}", reason="is called with different numbers of operands"
                )
    return counts


def _with_caches_of_version_1(plan: Fields, buffers: list[Fields]) -> list[Fields]:
    """The buffers as version 2 lists them: version 1 had one width and one element type for the caches of all layers,
    which were cache.0 to the last."""
    count = plan.integer("n_caches", 1, 2**16)
    common = {"dtype": plan.string("cache_dtype"), "width": plan.integer("latent_dim", 1, _MOST_WIDTH)}
    if common["dtype"] not in ("float32", "bfloat16", "float16"):
        raise plan.fail("cache_dtype", f"{common['dtype']!r} is unknown")
    caches = {i: fields for i, fields in enumerate(buffers) if fields.value.get("kind") == "cache"}
    if sorted(fields.string("name") for fields in caches.values()) != sorted(f"cache.{i}" for i in range(count)):
        raise PlanInvalid(where="buffers", reason=f"caches must be cache.0 to cache.{count - 1}, each once")
    whole = {i: Fields({**fields.value, **common}, fields.where, fields.fault) for i, fields in caches.items()}
    return [whole.get(i, fields) for i, fields in enumerate(buffers)]


def _costs(fields: Fields) -> Mapping[str, Cost]:
    return MappingProxyType({kernel: parse_cost(fields.object(kernel)) for kernel in fields.value})


def _bounds(fields: Fields) -> Bounds:
    bounds = Bounds(*(fields.integer(key, 1, 2**24) for key in ("T", "R", "S", "P")))
    if bounds.S * bounds.P > 2**28:
        raise fields.fail("P", f"the page table of {bounds.S} x {bounds.P} entries is too large")
    return bounds


def _buffer(fields: Fields, arena_bytes: int, tensors: Mapping[str, Tensor]) -> Buffer:
    name, kind = fields.string("name"), fields.string("kind")
    if kind not in _KINDS:
        raise fields.fail("kind", f"{kind!r} is not one of {', '.join(_KINDS)}")
    dtype = fields.string("dtype")
    if dtype not in ELEMENT_BYTES:
        raise fields.fail("dtype", f"{dtype!r} is unknown")
    if kind == "cache":
        if not _CACHE_NAME.fullmatch(name):
            raise fields.fail("name", f"{name!r} is not cache.LAYER or cache.LAYER.PART")
        width, codes = fields.integer("width", 1, _MOST_WIDTH), fields.string("codes", default="")
        return Buffer(name, kind, dtype, 0, width=width, codes=codes)
    size = fields.integer("size", 1, 2**44)
    if kind == "input":
        return Buffer(name, kind, dtype, size)
    if kind == "weight":
        parted = "offset" in fields.value
        offset = fields.integer("offset", 0, 2**44, default=0)
        return _weight(fields, Buffer(name, kind, dtype, size, offset, fields.string("tensor"), parted), tensors)
    buffer = Buffer(name, kind, dtype, size, offset=fields.integer("offset", 0, 2**44))
    if buffer.offset % ALIGNMENT:
        raise fields.fail("offset", f"{buffer.offset} is not a multiple of {ALIGNMENT}")
    if buffer.offset + buffer.bytes > arena_bytes:
        raise fields.fail("offset", f"{buffer.offset} + {buffer.bytes} bytes pass the arena's {arena_bytes}")
    return buffer


def _weight(fields: Fields, buffer: Buffer, tensors: Mapping[str, Tensor]) -> Buffer:
    tensor = tensors.get(buffer.tensor)
    if tensor is None:
        raise fields.fail("tensor", f"{buffer.tensor!r} is not in weights.safetensors")
    if _STORAGE.get(tensor.dtype, tensor.dtype) != _STORAGE.get(buffer.dtype, buffer.dtype):
        raise fields.fail("dtype", f"is {buffer.dtype}, weights.safetensors has {tensor.dtype}")
    if not buffer.parted and tensor.elements != buffer.size:
        raise fields.fail("size", f"is {buffer.size}, weights.safetensors has {tensor.elements} elements")
    if buffer.offset % ALIGNMENT:
        raise fields.fail("offset", f"{buffer.offset} is not a multiple of {ALIGNMENT}")
    if buffer.offset + buffer.bytes > tensor.bytes:
        raise fields.fail("offset", f"{buffer.offset} + {buffer.bytes} bytes pass the tensor's {tensor.bytes}")
    if tensor.offset % ALIGNMENT:
        raise fields.fail("tensor", f"{buffer.tensor!r} does not start on a {ALIGNMENT}-byte boundary of the file")
    return buffer


def _check_inputs(buffers: tuple[Buffer, ...], bounds: Bounds) -> None:
    inputs: dict[str, Buffer] = {}
    for i, buffer in enumerate(buffers):
        if buffer.kind != "input":
            continue
        if buffer.name in inputs:
            raise PlanInvalid(where=f"buffers[{i}].name", reason=f"the input {buffer.name!r} is there twice")
        if buffer.bytes > 2**36:
            raise PlanInvalid(where=f"buffers[{i}].size", reason=f"an input of {buffer.bytes} bytes is too large")
        inputs[buffer.name] = buffer
    for name, size in bounds.step_inputs().items():
        found = inputs.get(name)
        if found is None:
            raise PlanInvalid(where="buffers", reason=f"the input {name!r} is missing")
        if found.dtype != "int32" or found.size != size:
            raise PlanInvalid(
                where="buffers", reason=f"the input {name!r} is {found.dtype}[{found.size}], it must be int32[{size}]"
            )


def _check_caches(buffers: tuple[Buffer, ...]) -> None:
    caches = [buffer for buffer in buffers if buffer.kind == "cache"]
    if not caches:
        raise PlanInvalid(where="buffers", reason="none of them is a cache")
    if len({cache.name for cache in caches}) != len(caches):
        raise PlanInvalid(where="buffers", reason="two caches have the same name")
    slot_bytes = sum(cache.slot_bytes for cache in caches)
    if slot_bytes > _MOST_SLOT_BYTES:
        reason = f"a token takes {slot_bytes} bytes in all caches, it must take {_MOST_SLOT_BYTES} at most"
        raise PlanInvalid(where="buffers", reason=reason)


def _check_cache_operands(entries: Mapping[str, Entry], buffers: tuple[Buffer, ...]) -> None:
    """A kernel is compiled for caches of one width and type, and finds out neither of them when it is called."""
    calls = (call for entry in entries.values() for call in entry.calls)
    operands = ((kernel, place, buffers[index]) for kernel, indices in calls for place, index in enumerate(indices))
    seen: dict[tuple[str, int], Buffer] = {}
    for kernel, place, found in operands:
        other = seen.setdefault((kernel, place), found)
        if _cache_rows(found) != _cache_rows(other):
            is_one, is_other = (f"{buffer.name}{_cache_rows(buffer)}" for buffer in (found, other))
            reason = f"operand {place} is {is_one} in one call, {is_other} in another"
            raise PlanInvalid(where=f"entries: the kernel {kernel}", reason=reason)


def _cache_rows(buffer: Buffer) -> str:
    """What is alike in all caches that a kernel can be called with; of other buffers nothing."""
    return f" ({buffer.width} x {buffer.dtype})" if buffer.kind == "cache" else ""


def _drawn(
    fields: Fields, entries: Mapping[str, Entry], buffers: tuple[Buffer, ...], bounds: Bounds
) -> dict[str, Entry]:
    """Entries that end with tokens: another entry's calls, then those of sampling."""
    found = {}
    for name in fields.value:
        drawn = fields.object(name)
        base = entries.get(drawn.string("entry"))
        if base is None or name in entries:
            raise fields.fail(name, "must have a name of its own and the entry that it goes on from")
        token = drawn.integer("token", 0, len(buffers) - 1)
        if (buffers[token].kind, buffers[token].dtype, buffers[token].size) != ("arena", "int32", bounds.R):
            raise drawn.fail("token", f"must be an int32 buffer of the arena, one for each of {bounds.R} rows")
        _rows(drawn, ["token"])
        found[name] = base.drawn(name, _calls(drawn, buffers), token)
    params = next((buffer for buffer in buffers if buffer.kind == "input" and buffer.name == "sampling"), None)
    if found and (params is None or (params.dtype, params.size) != ("int32", bounds.R * DRAW_WORDS)):
        raise PlanInvalid(where="buffers", reason=f"the input 'sampling' must be int32[{bounds.R * DRAW_WORDS}]")
    return found


def _calls(fields: Fields, buffers: tuple[Buffer, ...]) -> list[Call]:
    calls = []
    for i, call in enumerate(fields.list("calls")):
        well_formed = isinstance(call, list) and len(call) == 2 and isinstance(call[0], str) and call[0].isidentifier()
        if not well_formed or not isinstance(call[1], list):
            raise fields.fail(f"calls[{i}]", "must be [kernel name, [buffer indices]]")
        if not all(type(index) is int and 0 <= index < len(buffers) for index in call[1]):
            raise fields.fail(f"calls[{i}]", f"has a buffer index that is not in 0..{len(buffers) - 1}")
        calls.append((call[0], tuple(call[1])))
    return calls


def _entry(name: str, fields: Fields, buffers: tuple[Buffer, ...], bounds: Bounds, vocab_size: int) -> Entry:
    calls = _calls(fields, buffers)
    max_tokens = fields.integer("max_tokens", 1, bounds.T, default=bounds.T)
    min_tokens = fields.integer("min_tokens", 1, 2**31, default=1)
    max_context = fields.integer("max_context", 1, 2**31, default=NEVER)
    outputs = _outputs(fields, buffers, bounds, vocab_size)
    inputs = fields.object("inputs") if "inputs" in fields.value else Fields({}, "inputs", PlanInvalid)
    indices = {key: inputs.integer(key, 0, len(buffers) - 1) for key in inputs.value}
    for key, index in indices.items():
        if buffers[index].kind != "input" or buffers[index].dtype != "float32" or buffers[index].size % bounds.T:
            raise inputs.fail(key, "must be an input buffer of float32 with a row per token")
    found = fields.list("cuts") if "cuts" in fields.value else []
    cuts = tuple(_cut(Fields(cut, f"{name}.cuts[{i}]", PlanInvalid), calls, buffers) for i, cut in enumerate(found))
    if any(buffers[cut.residual].size % bounds.T for cut in cuts):
        raise fields.fail("cuts", f"the residual must have a row for each of {bounds.T} tokens")
    limits, experts = (min_tokens, max_tokens), _experts(fields, buffers, bounds)
    inputs_of = MappingProxyType(indices)
    return Entry(name, tuple(calls), outputs, inputs_of, *limits, cuts, experts=experts, max_context=max_context)


def _experts(fields: Fields, buffers: tuple[Buffer, ...], bounds: Bounds) -> Mapping[int, int]:
    """Earlier plans have none."""
    listed = fields.object("experts") if "experts" in fields.value else Fields({}, "experts", PlanInvalid)
    found = {}
    for layer in listed.value:
        if not _LAYER.fullmatch(layer):
            raise listed.fail(layer, "is not the number of a layer")
        index = found[int(layer)] = listed.integer(layer, 0, len(buffers) - 1)
        if (buffers[index].kind, buffers[index].dtype) != ("arena", "int32") or buffers[index].size % bounds.T:
            raise listed.fail(layer, f"must be an int32 buffer of the arena, with a row for each of {bounds.T} tokens")
    return MappingProxyType(found)


def _cut(fields: Fields, calls: Sequence[Call], buffers: tuple[Buffer, ...]) -> Cut:
    first = fields.integer("first", 0, len(calls) - 1)
    kept, readers = fields.list("kept"), fields.list("readers")
    if not all(type(call) is int and 0 <= call < first for call in kept):
        raise fields.fail("kept", f"must hold calls before {first}")
    residual = fields.integer("residual", 0, len(buffers) - 1)
    if buffers[residual].kind != "arena" or buffers[residual].dtype != "float32":
        raise fields.fail("residual", "must be a float32 buffer of the arena")
    for reader in readers:
        if not isinstance(reader, list) or len(reader) != 2 or not all(type(number) is int for number in reader):
            raise fields.fail("readers", "must hold pairs of a call and an operand")
        call, operand = reader
        if not 0 <= call < len(calls) or not 0 <= operand < len(calls[call][1]):
            raise fields.fail("readers", f"has operand {operand} of call {call}, which is not there")
        if calls[call][1][operand] != residual:
            raise fields.fail("readers", f"operand {operand} of call {call} is not the residual")
    return Cut(first, tuple(kept), residual, tuple((call, operand) for call, operand in readers))


def _outputs(fields: Fields, buffers: tuple[Buffer, ...], bounds: Bounds, vocab_size: int) -> Mapping[str, Output]:
    """Of an entry."""
    listed = fields.object("outputs")
    indices = {key: listed.integer(key, 0, len(buffers) - 1) for key in listed.value}
    rows = _rows(fields, indices)
    outputs = {key: Output(index, rows[key]) for key, index in indices.items()}
    for key, output in outputs.items():
        buffer, most = buffers[output.buffer], output.count(bounds.T, bounds.R)
        if buffer.kind != "arena" or buffer.dtype != "float32":
            raise listed.fail(key, "must be a float32 buffer of the arena")
        if buffer.size % most:
            raise listed.fail(key, f"must have a row for each of {most} {_COUNTED[output.rows]}")
    if "logits" not in outputs:
        raise listed.fail("logits", "is missing")
    found = buffers[outputs["logits"].buffer].size
    if found != bounds.R * vocab_size:
        raise listed.fail("logits", f"has {found} elements, {bounds.R} rows of {vocab_size} are needed")
    return MappingProxyType(outputs)


def _rows(fields: Fields, results: Iterable[str]) -> dict[str, str]:
    """What each result of an entry has rows of. Earlier plans do not state it; for the results that every runtime
    knows it was never different."""
    stated = fields.object("rows") if "rows" in fields.value else None
    rows = {}
    for name in results:
        usual = _ROWS.get(name, "T")
        rows[name] = usual if stated is None else stated.string(name)
        if rows[name] not in _COUNTED or (name in _ROWS and rows[name] != usual):
            raise fields.fail("rows", f"{name} has rows of {rows[name]!r}, it must be {usual}")
    return rows
