"""plan.json as frozen values: `Plan.to_json` writes what `parse_plan` reads.

After `parse_plan` every index, offset and bound of the plan is in range. Kernels trust the plan blindly, so nothing may
be mapped, allocated or run before this module has accepted it. The compiler builds the same values, and writes them by
`Plan.to_json`. Keys of plan.json that this version does not know are ignored; a newer `version` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from dsv3c.runtime.artifact.costs import Cost, parse_cost
from dsv3c.runtime.artifact.dispatches import Table, parse_table
from dsv3c.runtime.artifact.fields import Fields
from dsv3c.runtime.artifact.weights import ALIGNMENT, Tensor
from dsv3c.runtime.errors import FormatNewer, PlanInvalid

PLAN_VERSION = 2
NEVER = 2**31 - 1  # of tokens: no step is as long
CONTROL_SIZE = 16
DRAW_WORDS = 8  # of a row of the input `sampling`
ELEMENT_BYTES: Mapping[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "uint16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
# bfloat16 is stored as its bit pattern, under either name.
_STORAGE = {"bfloat16": "uint16"}
_KINDS = ("input", "cache", "arena", "weight")
_COUNTED = {"T": "tokens", "R": "rows"}
_ROWS = {"logits": "R", "token": "R", "hidden": "T"}  # as a session reads them
Call = tuple[str, tuple[int, ...]]  # a kernel's name, the indices of its buffers
_CACHE_NAME = re.compile(r"cache\.(0|[1-9][0-9]{0,5})(\.[a-z][a-z0-9_]*)?")
_MOST_WIDTH = 2**20
_MOST_SLOT_BYTES = 2**30  # of all caches: with 2**31 slots, sizes are far below 64 bits


@dataclass(frozen=True)
class Bounds:
    """Largest step: tokens `T`, rows with logits `R`, sequences `S`, pages of one sequence `P`."""

    T: int
    R: int
    S: int
    P: int

    def step_inputs(self) -> dict[str, int]:
        """Elements of each int32 input that every step has, by name."""
        per_token = dict.fromkeys(("tokens", "positions", "sequence"), self.T)
        return {**per_token, "page_table": self.S * self.P, "rows": self.R, "control": CONTROL_SIZE}

    def to_json(self) -> dict[str, int]:
        return {"T": self.T, "R": self.R, "S": self.S, "P": self.P}


@dataclass(frozen=True)
class Buffer:
    """One flat buffer. `size` counts elements (0 for a cache, whose size is chosen at load).

    offset: bytes from the start of the arena, or of the tensor of which a weight is a part. parted: whether a weight is
    but a part of its tensor. width: of a cache, elements of a slot, in which one token has its row; each cache has its
    own. A cache is called cache.LAYER or, if it is a further one of its layer, cache.LAYER.PART.
    """

    name: str
    kind: str
    dtype: str
    size: int
    offset: int = 0
    tensor: str = ""
    parted: bool = False
    width: int = 0

    @property
    def bytes(self) -> int:
        return self.size * ELEMENT_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        stated: dict[str, Any] = {"name": self.name, "kind": self.kind, "dtype": self.dtype}
        if self.kind == "cache":
            return stated | {"width": self.width}
        stated["size"] = self.size
        if self.kind == "weight":
            stated["tensor"] = self.tensor
        return stated | ({"offset": self.offset} if self.kind == "arena" or self.parted else {})

    @property
    def slot_bytes(self) -> int:
        """Bytes one token takes in this cache."""
        return self.width * ELEMENT_BYTES[self.dtype]

    @property
    def layer(self) -> int:
        """The layer whose cache this is."""
        return int(self.name.split(".")[1])


@dataclass(frozen=True)
class Cut:
    """Where two devices can share an entry, before one of its layers.

    The calls from `first` on, with those of `kept` before them, need of all other calls the buffer `residual` alone,
    float32 with a row per token. readers: (call, operand) of them that read it.
    """

    first: int
    kept: tuple[int, ...]
    residual: int
    readers: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        readers = [list(reader) for reader in self.readers]
        return {"first": self.first, "kept": list(self.kept), "residual": self.residual, "readers": readers}


@dataclass(frozen=True)
class Output:
    """A result of an entry: the index of its buffer, and what a step gives a row for, its tokens T or its rows R."""

    buffer: int
    rows: str

    def count(self, tokens: int, rows: int) -> int:
        """Rows that a step of so many tokens and rows gives."""
        return tokens if self.rows == "T" else rows


@dataclass(frozen=True)
class Entry:
    """One function of the plan: kernel calls in order, each a kernel's name and the indices of its buffers.

    cuts: before each layer; empty where the entry cannot be cut. base: of an entry that ends with tokens, the one whose
    calls its own begin with, and whose bounds it has.
    """

    name: str
    calls: tuple[Call, ...]
    outputs: Mapping[str, Output]
    inputs: Mapping[str, int]
    min_tokens: int
    max_tokens: int
    cuts: tuple[Cut, ...] = ()
    base: str | None = None

    def drawn(self, name: str, calls: Sequence[Call], token: int) -> Entry:
        """The entry that goes on with `calls`, which sample, and gives the buffer `token` instead of logits."""
        outputs = MappingProxyType({"token": Output(token, "R")})
        return replace(self, name=name, calls=(*self.calls, *calls), outputs=outputs, base=self.name)

    def to_json(self) -> dict[str, Any]:
        buffers = {name: output.buffer for name, output in self.outputs.items()}
        stated: dict[str, Any] = {"calls": _calls_to_json(self.calls), "outputs": buffers, "rows": self._rows()}
        stated |= {"min_tokens": self.min_tokens, "max_tokens": self.max_tokens}
        stated |= {"cuts": [cut.to_json() for cut in self.cuts]} if self.cuts else {}
        return stated | ({"inputs": dict(self.inputs)} if self.inputs else {})

    def drawn_to_json(self, base: Entry) -> dict[str, Any]:
        """As `sampling` has it, for an entry that was drawn from `base`."""
        own, token = _calls_to_json(self.calls[len(base.calls) :]), self.outputs["token"].buffer
        return {"entry": base.name, "calls": own, "token": token, "rows": self._rows()}

    def _rows(self) -> dict[str, str]:
        return {name: output.rows for name, output in self.outputs.items()}


def _calls_to_json(calls: Sequence[Call]) -> list[Any]:
    return [[kernel, list(buffers)] for kernel, buffers in calls]


@dataclass(frozen=True)
class Plan:
    """costs: by kernel, None in artifacts that do not state them. dispatches: of a GPU, how kernels are launched."""

    bounds: Bounds
    page_size: int
    arena_bytes: int
    buffers: tuple[Buffer, ...]
    entries: Mapping[str, Entry]
    costs: Mapping[str, Cost] | None = None
    dispatches: Table | None = None

    @property
    def context(self) -> int:
        """Tokens one sequence can hold at most."""
        return self.bounds.P * self.page_size

    @property
    def inputs(self) -> dict[str, int]:
        """Index of each input buffer by name."""
        return {buffer.name: i for i, buffer in enumerate(self.buffers) if buffer.kind == "input"}

    def row_bytes(self, output: Output) -> int:
        """Bytes of a row of a result."""
        return self.buffers[output.buffer].bytes // output.count(self.bounds.T, self.bounds.R)

    @property
    def caches(self) -> tuple[Buffer, ...]:
        """The caches, in the order of the buffers. A page of a sequence holds the same tokens in all of them."""
        return tuple(buffer for buffer in self.buffers if buffer.kind == "cache")

    @property
    def slot_bytes(self) -> int:
        """Bytes one token takes in all caches together."""
        return sum(cache.slot_bytes for cache in self.caches)

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        stated = {
            "version": PLAN_VERSION,
            "bounds": self.bounds.to_json(),
            "page_size": self.page_size,
            "arena_bytes": self.arena_bytes,
            "buffers": [buffer.to_json() for buffer in self.buffers],
            "entries": {name: entry.to_json() for name, entry in self.entries.items() if entry.base is None},
        }
        drawn = {name: (self.entries[each.base], each) for name, each in self.entries.items() if each.base is not None}
        if drawn:
            stated["sampling"] = {name: entry.drawn_to_json(base) for name, (base, entry) in drawn.items()}
        if self.costs is not None:
            stated["costs"] = {kernel: cost.to_json() for kernel, cost in self.costs.items()}
        return stated | (self.dispatches.to_json() if self.dispatches else {})


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
        return Buffer(name, kind, dtype, 0, width=fields.integer("width", 1, _MOST_WIDTH))
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
    return Entry(name, tuple(calls), outputs, MappingProxyType(indices), min_tokens, max_tokens, cuts)


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
