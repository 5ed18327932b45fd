"""Adapters merged into the tensors of a checkpoint, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dsv3c.compiler.checkpoint.catalog import LogicalTensor
from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.expected import EMBEDDING, HEAD, optional_tensors, required_tensors
from dsv3c.compiler.checkpoint.files import quote, some
from dsv3c.compiler.checkpoint.lora.adapter import Adapter, Named
from dsv3c.compiler.checkpoint.lora.delta import MergedWeight
from dsv3c.compiler.checkpoint.quantised.weight import Readable
from dsv3c.compiler.options import Lora


@dataclass(frozen=True)
class Merged:
    """A model with adapters in it. notes: what is said of them."""

    config: ModelConfig
    entries: Mapping[str, LogicalTensor]
    adapters: tuple[Adapter, ...]
    notes: tuple[str, ...]


def merged(config: ModelConfig, entries: Mapping[str, LogicalTensor], given: Sequence[Lora], named: Named) -> Merged:
    """The tensors with what the adapters make of them in their order, where they are read. named and what is raised: as
    of `Adapter.open`.

    Of a tied model, whose head and embedding are one, adapters may change one alone: then it has both.
    """
    both = {**entries, HEAD: entries[EMBEDDING]} if config.tie_word_embeddings else dict(entries)
    adapters = tuple(Adapter.open(each, both, named) for each in given)
    if config.tie_word_embeddings:
        adapters = tuple(_tied(adapter) if adapter.config.ties else adapter for adapter in adapters)
    changed = {name for adapter in adapters for name, _ in adapter.places}
    notes = tuple(_told(adapter) for adapter in adapters)
    if config.tie_word_embeddings and changed & {EMBEDDING, HEAD}:
        config = replace(config, tie_word_embeddings=False)
        notes += ("head and embedding are no longer one: an adapter changes them",)
    in_codes = [name for name in changed if any(part.coding for part in both[name].parts)]
    if in_codes:
        said = (
            f"{len(in_codes)} tensors of the checkpoint are in codes and change with the adapters, so they are decoded"
        )
        notes += (f"{said} and rounded again: {some(sorted(in_codes))}",)
    order = (name for name in (*required_tensors(config), *optional_tensors(config)) if name in both)
    return Merged(config, {name: _changed(name, both[name], adapters) for name in order}, adapters, notes)


def _tied(adapter: Adapter) -> Adapter:
    """One that means the head too with what it has for the embedding alone."""
    here, there = (EMBEDDING, 0), (HEAD, 0)
    if here not in adapter.places or there in adapter.places:
        return adapter
    whole = {**adapter.whole, there: adapter.whole[here]} if here in adapter.whole else adapter.whole
    deltas = {**adapter.deltas, there: adapter.deltas[here]} if here in adapter.deltas else adapter.deltas
    return replace(adapter, whole=whole, deltas=deltas)


def _told(adapter: Adapter) -> str:
    base = "" if adapter.config.base is None else f", which was trained for {quote(adapter.config.base)},"
    times = "" if adapter.given.scale == 1 else f" {adapter.given.scale:g} times"
    return f"the adapter {adapter.name}{base} is merged{times} into {len(adapter.places)} weights"


def _changed(name: str, entry: LogicalTensor, adapters: Sequence[Adapter]) -> LogicalTensor:
    parts = list(entry.parts)
    for adapter in adapters:
        for index, part in enumerate(parts):
            parts[index] = _with(adapter, name, index, part)
    return replace(entry, parts=tuple(parts))


def _with(adapter: Adapter, name: str, index: int, part: Readable) -> Readable:
    part = adapter.whole.get((name, index), part)
    delta = adapter.deltas.get((name, index))
    return part if delta is None else MergedWeight(part, delta, name.replace("*", str(index)))
