"""What it costs to store a weight in a format, told from what the model then computes.

Two measures of one change, the rounding of a single weight while all others stay float:

    kl      KL divergence of the next-token distributions, mean over tokens, in nats
    error   |y - y'|² / |y|² of the products that the weight is an operand of

The float graph is evaluated once and everything in it kept. A changed weight then costs its own products for `error`,
and for `kl` what depends on it: all before is shared.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dsv3c.compiler.core import ops
from dsv3c.compiler.core.caches import is_cache
from dsv3c.compiler.core.ir import Graph, Value
from dsv3c.compiler.core.ops.weight import decoded
from dsv3c.compiler.formats.elements import NUMPY_DTYPES, Array
from dsv3c.compiler.formats.quant import stored
from dsv3c.compiler.formats.table import WeightFormat
from dsv3c.compiler.quantisation.quant_plan import Weight

LOGITS, HIDDEN = "logits", "hidden"


def step_inputs(tokens: Array, page_size: int) -> dict[str, Array]:
    """The inputs of one step over whole sequences, tokens i32 [S, L], with logits for every token."""
    sequences, length = tokens.shape
    pages = -(-length // page_size)
    return {
        "tokens": tokens.reshape(-1),
        "positions": np.tile(np.arange(length, dtype=np.int32), sequences),
        "sequence": np.repeat(np.arange(sequences, dtype=np.int32), length),
        "page_table": np.arange(sequences * pages, dtype=np.int32).reshape(sequences, pages),
        "rows": np.arange(tokens.size, dtype=np.int32),
    }


class Experiment:
    """A float graph evaluated on one step, to be asked what changes when weights are rounded.

    read(name) gives a tensor of the checkpoint. Everything that the graph computes stays in memory.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Array], read: Callable[[str], Array], page_size: int) -> None:
        self._order = graph.values()
        self._users = graph.users()
        self._results = dict(graph.results)
        self._known: dict[Value, Any] = {}
        for value in self._order:
            name = str(value.attrs.get("name"))
            if value.op == "param":
                self._known[value] = read(name)
            elif is_cache(value):
                slots = inputs["page_table"].size * page_size
                self._known[value] = np.zeros((slots, int(value.shape[1])), NUMPY_DTYPES[value.dtype])
            else:
                self._known[value] = inputs[name] if value.op == "input" else _computed(value, self._known)
        self._log_p = _log_softmax(self.result(LOGITS))

    def result(self, name: str) -> Array:
        """What the float model computes."""
        found: Array = self._known[self._results[name]]
        return found

    def has(self, recipe: Value) -> bool:
        return recipe in self._known

    def rounded(self, weight: Weight, format: WeightFormat) -> dict[Value, Array]:
        """What the recipes of a weight are in a format, of those that the graph has."""
        recipes = [recipe for recipe in weight.recipes if recipe in self._known]
        return {recipe: decoded(stored(self._known[recipe], format)) for recipe in recipes}

    def error(self, changed: Mapping[Value, Array]) -> float:
        """The relative error of the products with weights that are `changed`, given by their recipes."""
        apart = power = 0.0
        known = ChainMap(dict(changed), self._known)
        for user in dict.fromkeys(user for recipe in changed for user in self._users[recipe]):
            difference = _computed(user, known) - self._known[user]
            apart += float(np.square(difference).sum(dtype=np.float64))
            power += float(np.square(self._known[user]).sum(dtype=np.float64))
        return apart / power if power else 0.0

    def kl(self, changed: Mapping[Value, Array]) -> float:
        """The divergence of the distributions with weights that are `changed` from those of the float model."""
        log_p, log_q = self._log_p, _log_softmax(self.logits(changed))
        return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1, dtype=np.float64).mean()))

    def logits(self, changed: Mapping[Value, Array]) -> Array:
        """[T, vocab_size]"""
        found: ChainMap[Value, Any] = ChainMap(dict(changed), self._known)
        for value in self._order:
            if value not in changed and any(source in found.maps[0] for source in value.inputs):
                found[value] = _computed(value, found)
        logits: Array = found[self._results[LOGITS]]
        return logits


def _computed(value: Value, known: Mapping[Value, Any]) -> Any:
    return ops.lookup(value.op).evaluate(*(known[source] for source in value.inputs), **value.semantics)


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
