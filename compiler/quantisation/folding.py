"""Where a scale of each input of a matrix can go, so that nothing is paid for it when the model runs.

AWQ (arXiv 2306.00978) multiplies the columns of a matrix that meet large inputs before it is rounded, which makes their
errors smaller, and divides the inputs. What computes the inputs is divided instead: the weight of a norm, or rows of a
matrix, whose own rounding hardly changes with that, since a row has scales of its own. Tensors of the checkpoint are
changed as they are read, so that every recipe of every entry has it; the float model stays what it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dsv3c.compiler.checkpoint import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL, INDEXER
from dsv3c.compiler.formats import coded
from dsv3c.compiler.formats.elements import as_float32
from dsv3c.compiler.quantisation.inputs import Array

Read = Callable[[str, int | None], Array]  # one tensor of the checkpoint, or one expert of a stacked one


def _all() -> slice:
    return slice(None)


@dataclass(frozen=True, eq=False)
class Part:
    """Columns `at` of a tensor that reads the inputs `of` a site, or its rows `at` that produce them.

    expert: one of a stacked tensor, None for all.
    """

    name: str
    expert: int | None = None
    at: slice | Array = field(default_factory=_all)
    of: slice = field(default_factory=_all)


@dataclass(frozen=True, eq=False)
class Site:
    """Inputs that can be scaled: all that reads them, and all that produces them.

    index: of the expert in the stack of all, behind the routed ones the shared; None where it is not one expert's.
    """

    readers: tuple[Part, ...]
    producers: tuple[Part, ...]
    index: int | None = None


def sites(config: ModelConfig) -> Iterator[Site]:
    """Those of all layers, as frontend.model has them.

    Left out: the final norm, whose rows multi-token prediction reads too, and the norm of the latent rows, which are
    cached as they are.
    """
    main, hidden = config.num_hidden_layers, config.hidden_size
    for layer in range(main + config.num_nextn_predict_layers):
        prefix = f"model.layers.{layer}."
        if layer >= main:
            halves = (slice(0, hidden), slice(hidden, 2 * hidden))
            norms = (Part(f"{prefix}{name}.weight", of=of) for name, of in zip(("enorm", "hnorm"), halves, strict=True))
            yield Site((Part(f"{prefix}eh_proj.weight"),), tuple(norms))
        yield from _attention(config, layer, prefix)
        yield from _feed_forward(config, prefix, layer)


def _attention(config: ModelConfig, layer: int, prefix: str) -> Iterator[Site]:
    own = f"{prefix}self_attn."
    query = "q_proj" if config.q_lora_rank is None else "q_a_proj"
    readers, of_latent = [f"{own}{query}", f"{own}kv_a_proj_with_mqa"], [f"{own}q_b_proj"]
    if config.indexer_type(layer) == FULL:
        readers += [f"{prefix}{INDEXER}wk", f"{prefix}{INDEXER}weights_proj"]
        of_latent += [f"{prefix}{INDEXER}wq_b"]
    yield Site(_whole(readers), (Part(f"{prefix}input_layernorm.weight"),))
    if config.q_lora_rank is not None:
        yield Site(_whole(of_latent), (Part(f"{own}q_a_layernorm.weight"),))
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    rows = np.arange(heads * (nope + config.v_head_dim)).reshape(heads, -1)
    values = Part(f"{own}kv_b_proj.weight", at=rows[:, nope:].reshape(-1))
    yield Site((Part(f"{own}o_proj.weight"),), (values,))


def _whole(names: list[str]) -> tuple[Part, ...]:
    return tuple(Part(f"{name}.weight") for name in names)


def _feed_forward(config: ModelConfig, prefix: str, layer: int) -> Iterator[Site]:
    """All that reads one norm is one site; where experts give back their input it is none, as this would change."""
    readers = _mlp_inputs(prefix) if config.has_mlp(layer) else ()
    if config.is_moe(layer):
        readers += _experts_inputs(config, prefix)
    if not (config.is_moe(layer) and config.zero_expert_num):
        yield Site(readers, (Part(f"{prefix}post_attention_layernorm.weight"),))
    if config.has_mlp(layer):
        yield Site((Part(f"{prefix}mlp.down_proj.weight"),), (Part(f"{prefix}mlp.up_proj.weight"),))
    if config.is_moe(layer):
        yield from _experts(config, prefix)


def _mlp_inputs(prefix: str) -> tuple[Part, ...]:
    return tuple(Part(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up"))


def _experts_inputs(config: ModelConfig, prefix: str) -> tuple[Part, ...]:
    kinds = ("mlp.experts.*.", "mlp.shared_experts.") if config.n_shared_experts else ("mlp.experts.*.",)
    matrices = (Part(f"{prefix}{kind}{name}_proj.weight") for kind in kinds for name in ("gate", "up"))
    return Part(f"{prefix}mlp.gate.weight"), *matrices


def _experts(config: ModelConfig, prefix: str) -> Iterator[Site]:
    n_experts, n_shared, width = config.n_routed_experts, config.n_shared_experts, config.moe_intermediate_size
    own, shared = f"{prefix}mlp.experts.*.", f"{prefix}mlp.shared_experts."
    for expert in range(n_experts):
        down, up = (Part(f"{own}{name}_proj.weight", expert) for name in ("down", "up"))
        yield Site((down,), (up,), expert)
    for number in range(n_shared):
        at = slice(number * width, (number + 1) * width)
        down, up = (Part(f"{shared}{name}_proj.weight", at=at) for name in ("down", "up"))
        yield Site((down,), (up,), n_experts + number)


@dataclass
class Folding:
    """The scales that are found so far. in_codes: tensors that were read in codes of the checkpoint."""

    in_codes: set[str] = field(default_factory=set)
    _columns: defaultdict[str, list[tuple[Part, Array]]] = field(default_factory=lambda: defaultdict(list))
    _rows: defaultdict[str, list[tuple[Part, Array]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, site: Site, scale: Array) -> None:
        """scale f32 [K]: what columns are multiplied by. A site with tensors in codes stays as it is: these can't be
        multiplied."""
        if any(part.name in self.in_codes for part in (*site.readers, *site.producers)):
            return
        for part in site.readers:
            self._columns[part.name].append((part, scale[part.of]))
        for part in site.producers:
            self._rows[part.name].append((part, scale[part.of]))

    def multiplies(self, name: str, expert: int | None) -> bool:
        """Whether there are scales for columns of a tensor."""
        return any(_is_of(part, expert) for part, _ in self._columns.get(name, ()))

    def reading(self, read: Read) -> Read:
        """Reads tensors with the scales in them."""

        def scaled(name: str, expert: int | None) -> Array:
            w = read(name, expert)
            if coded.is_coded(w.dtype):
                self.in_codes.add(name)
            return self._scaled(name, expert, w)

        return scaled

    def _scaled(self, name: str, expert: int | None, w: Array) -> Array:
        columns, rows = self._columns.get(name, ()), self._rows.get(name, ())
        if not columns and not rows:
            return w
        if "*" in name and expert is None:
            return np.stack([self._scaled(name, each, part) for each, part in enumerate(w)])
        w = np.array(as_float32(w))
        for part, scale in columns:
            if _is_of(part, expert):
                w[..., part.at] *= scale
        for part, scale in rows:
            if _is_of(part, expert):
                w[part.at] /= scale if w.ndim == 1 else scale[:, None]
        return w


def _is_of(part: Part, expert: int | None) -> bool:
    return part.expert is None or part.expert == expert
