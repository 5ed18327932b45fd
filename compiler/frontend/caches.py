"""The caches of a model: the one list of what a token leaves behind in each layer.

The tracer makes an input of each; everything behind it (the memory plan, the manifest, figures of memory, pages, saved
prefixes, the C program) takes them from the graph's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsv3c.compiler.checkpoint.config import ModelConfig
from dsv3c.compiler.checkpoint.indexer import FULL
from dsv3c.compiler.core.caches import SLOTS, cache_name
from dsv3c.compiler.core.ir import TensorType
from dsv3c.compiler.formats.coded_rows import LARGEST, CodedRows

INDEX = "index"  # the keys of a layer's indexer
_UNCODED = "bf16"


@dataclass(frozen=True)
class CacheRow:
    """A token's row in one cache of a layer. part: what distinguishes it there, "" for one. width: columns.

    split: of codes, the columns that share the first of a row's two scales; 0: numbers, whatever the others are.
    """

    layer: int
    part: str
    width: int
    split: int

    @property
    def name(self) -> str:
        return cache_name(self.layer, self.part)

    def type(self, dtype: str) -> TensorType:
        """Of a cache of such rows, whose elements are `dtype` unless those are codes and it has none."""
        if dtype in LARGEST:
            dtype = CodedRows(dtype, self.split).type_name if self.split else _UNCODED
        return TensorType(dtype, (SLOTS, self.width))


def cache_rows(config: ModelConfig, layer: int) -> tuple[CacheRow, ...]:
    """Those of a layer; MTP layers come after the main ones."""
    latents = CacheRow(layer, "", config.latent_dim, config.kv_lora_rank)
    if config.indexer_type(layer) != FULL:
        return (latents,)
    return latents, CacheRow(layer, INDEX, config.index_head_dim, 0)


def main_cache_rows(config: ModelConfig) -> tuple[CacheRow, ...]:
    """Those of all layers but MTP's."""
    return tuple(row for layer in range(config.num_hidden_layers) for row in cache_rows(config, layer))
