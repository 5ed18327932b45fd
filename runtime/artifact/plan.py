"""plan.json as frozen values: the compiler builds them and writes them by `Plan.to_json`, plan_reader reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from dsv3c.runtime.artifact.costs import Cost
from dsv3c.runtime.artifact.dispatches import Table

PLAN_VERSION = 2
NEVER = 2**31 - 1  # of tokens: no step is as long
SHORT = "short_"  # what the names of entries begin with that are for short contexts
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
Call = tuple[str, tuple[int, ...]]  # a kernel's name, the indices of its buffers


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
    own. codes: what a row of bytes is in, int8 or fp8; empty where its elements are numbers. A cache is called
    cache.LAYER or, if it is a further one of its layer, cache.LAYER.PART.
    """

    name: str
    kind: str
    dtype: str
    size: int
    offset: int = 0
    tensor: str = ""
    parted: bool = False
    width: int = 0
    codes: str = ""

    @property
    def bytes(self) -> int:
        return self.size * ELEMENT_BYTES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        stated: dict[str, Any] = {"name": self.name, "kind": self.kind, "dtype": self.dtype}
        if self.kind == "cache":
            return stated | {"width": self.width} | ({"codes": self.codes} if self.codes else {})
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
    calls its own begin with, and whose bounds it has. max_context: the most tokens that one of a step may attend to,
    itself among them; `short_decode` and `short_prefill` are taken in place of the others where none has more. experts:
    by layer, the buffer int32 [T, experts a token] with the ids of those that each token visits; empty where that does
    not stay to the end of a step. Not read as outputs are, by every step, but only when asked for.
    """

    name: str
    calls: tuple[Call, ...]
    outputs: Mapping[str, Output]
    inputs: Mapping[str, int]
    min_tokens: int
    max_tokens: int
    cuts: tuple[Cut, ...] = ()
    base: str | None = None
    experts: Mapping[int, int] = field(default_factory=dict)
    max_context: int = NEVER

    def drawn(self, name: str, calls: Sequence[Call], token: int) -> Entry:
        """The entry that goes on with `calls`, which sample, and gives the buffer `token` instead of logits."""
        outputs = MappingProxyType({"token": Output(token, "R")})
        return replace(self, name=name, calls=(*self.calls, *calls), outputs=outputs, base=self.name)

    def to_json(self) -> dict[str, Any]:
        buffers = {name: output.buffer for name, output in self.outputs.items()}
        stated: dict[str, Any] = {"calls": _calls_to_json(self.calls), "outputs": buffers, "rows": self._rows()}
        stated |= {"min_tokens": self.min_tokens, "max_tokens": self.max_tokens}
        stated |= {"max_context": self.max_context} if self.max_context != NEVER else {}
        stated |= {"cuts": [cut.to_json() for cut in self.cuts]} if self.cuts else {}
        stated |= {"experts": {str(layer): index for layer, index in self.experts.items()}} if self.experts else {}
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

    def expert_ids(self, entry: str, tokens: int) -> dict[int, tuple[int, int]]:
        """By layer, the buffer of `Entry.experts` and how many of its elements a step of so many tokens writes."""
        experts = self.entries[entry].experts
        return {layer: (index, self.buffers[index].size // self.bounds.T * tokens) for layer, index in experts.items()}

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
