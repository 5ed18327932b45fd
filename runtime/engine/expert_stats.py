"""Counts of the experts that tokens visit, by layer: of all that a model computes, or of one request.

Every token that the model computes counts, whatever becomes of it: prompts, answers, drafts that are not accepted.
What the prefix cache spares is not computed. The layers of multi-token prediction have experts of their own, which are
not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dsv3c.runtime.errors import ModelClosed, ParameterInvalid, RequestFault

if TYPE_CHECKING:
    from dsv3c.runtime.engine.session import Session

Counts = NDArray[np.int64]
WINDOW = 256  # tokens, the last ones
MOST_WINDOW = 1 << 20
_NOBODY = -1


class NoExperts(RequestFault):
    name = "experts"  # of the parameter
    message = "the model has no experts that could be counted"
    hint = "only models with a mixture of experts choose among some"


class ExpertsUnknown(RequestFault):
    name = "experts"
    message = "the artifact does not say which experts tokens visit"
    hint = "compile the checkpoint again; for ONNX with --target onnx:experts=1, on two devices both artifacts"


@dataclass(frozen=True)
class Load:
    """How evenly visits are spread over the experts of a layer.

    expert, share: the busiest, and its part of all visits. entropy: of the shares, in bits. effective: so many experts,
    used evenly, have that entropy.
    """

    expert: int
    share: float
    entropy: float
    effective: float

    @classmethod
    def of(cls, counts: Counts) -> Load | None:
        """None where there are no visits."""
        total = int(counts.sum())
        if not total:
            return None
        shares = counts[counts > 0] / total
        entropy = float(-(shares * np.log2(shares)).sum()) + 0.0  # never -0
        busiest = int(counts.argmax())
        return cls(busiest, int(counts[busiest]) / total, entropy, 2**entropy)


class LayerCounts:
    """Visits of the experts of one layer: of all tokens, and of the last ones, which a ring holds."""

    def __init__(self, experts: int, top_k: int, window: int) -> None:
        self.counts: Counts = np.zeros(experts, np.int64)
        self.tokens = 0
        self._ring = np.full((window, top_k), _NOBODY, np.int32)

    def add(self, ids: NDArray[np.int32]) -> None:
        """ids [T, top_k]: of T tokens, in their order."""
        self.counts += self._counted(ids)
        size = len(self._ring)
        kept = ids[-size:]
        first = self.tokens + len(ids) - len(kept)
        self._ring[np.arange(first, first + len(kept)) % size] = kept
        self.tokens += len(ids)

    @property
    def window_tokens(self) -> int:
        return min(self.tokens, len(self._ring))

    @property
    def window_counts(self) -> Counts:
        return self._counted(self._ring[: self.window_tokens])

    def _counted(self, ids: NDArray[np.int32]) -> Counts:
        # Of a token whose numbers are not finite, ids may be anything: the step fails later, and by its own name.
        known = ids[(ids >= 0) & (ids < self.counts.size)]
        return np.bincount(known, minlength=self.counts.size).astype(np.int64)


class ExpertStats:
    """Of one model, while it is counted. window: how many tokens the last ones are."""

    def __init__(self, experts: int, top_k: int, window: int) -> None:
        self.experts = experts
        self.top_k = top_k
        self.window = window
        self.layers: dict[int, LayerCounts] = {}

    def add(self, layer: int, ids: NDArray[np.int32]) -> None:
        """ids [T, top_k]."""
        if layer not in self.layers:
            self.layers[layer] = LayerCounts(self.experts, self.top_k, self.window)
        self.layers[layer].add(ids)

    def add_step(self, chosen: Mapping[int, NDArray[np.int32]]) -> None:
        """What `Device.experts` gives."""
        for layer, ids in chosen.items():
            self.add(layer, ids.reshape(-1, self.top_k))

    def counts(self, layer: int) -> list[int]:
        """How often each expert of a layer was chosen."""
        return self.layers[layer].counts.tolist() if layer in self.layers else [0] * self.experts

    @property
    def tokens(self) -> int:
        return max((counts.tokens for counts in self.layers.values()), default=0)

    @property
    def window_tokens(self) -> int:
        return min(self.tokens, self.window)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "window": self.window,
            "window_tokens": self.window_tokens,
            "experts": self.experts,
            "top_k": self.top_k,
            "layers": [_layer_to_json(layer, self.layers[layer]) for layer in sorted(self.layers)],
        }


class RequestExperts:
    """Of one request: of the tokens that were read for it, and of those of the answer, as they were fed. A token that
    had to give its pages back is read again, and counts again."""

    def __init__(self, experts: int, top_k: int) -> None:
        self.prompt = ExpertStats(experts, top_k, window=1)
        self.answer = ExpertStats(experts, top_k, window=1)

    def to_json(self) -> dict[str, Any]:
        layers = sorted({*self.prompt.layers, *self.answer.layers})
        return {
            "experts": self.answer.experts,
            "top_k": self.answer.top_k,
            "prompt_tokens": self.prompt.tokens,
            "answer_tokens": self.answer.tokens,
            "layers": [
                {"layer": layer, "prompt": self.prompt.counts(layer), "answer": self.answer.counts(layer)}
                for layer in layers
            ],
        }


@contextmanager
def counting(session: Session, config: Mapping[str, Any], window: int) -> Iterator[ExpertStats]:
    """As `Model.count_experts`. config: of the model."""
    if type(window) is not int or not 1 <= window <= MOST_WINDOW:
        raise ParameterInvalid(name="window", value=window, reason=f"it must be an integer from 1 to {MOST_WINDOW}")
    stats = ExpertStats(*choice_of(session, config), window)
    with session.turns:
        session.expert_stats.append(stats)
    try:
        yield stats
    finally:
        with session.turns:
            session.expert_stats.remove(stats)


def choice_of(session: Session, config: Mapping[str, Any]) -> tuple[int, int]:
    """How many experts a layer has, behind them those that compute nothing, and how many of them a token visits. Raises
    NoExperts, ExpertsUnknown, ModelClosed. config: of the model."""
    experts, top_k = config.get("n_routed_experts"), config.get("num_experts_per_tok")
    if not experts or not top_k:
        raise NoExperts()
    experts += config.get("zero_expert_num") or 0
    if session.closed:
        raise ModelClosed()
    if not session.tells_experts:  # asked once: it takes a turn at the device
        with session.turns:
            session.tells_experts = _all_known(session, top_k)
    if not session.tells_experts:
        raise ExpertsUnknown()
    return experts, top_k


def _all_known(session: Session, top_k: int) -> bool:
    """Whether every entry that reads a text says what experts it visits."""
    plan = session.plan
    for name in plan.entries.keys() - {"mtp"}:
        sizes = {size for _, size in plan.expert_ids(name, 1).values()}
        if not session.device.experts(name) or not sizes <= {top_k}:
            return False
    return True


def _layer_to_json(layer: int, found: LayerCounts) -> dict[str, Any]:
    recent = found.window_counts
    return {
        "layer": layer,
        "counts": found.counts.tolist(),
        **_load_to_json(found.counts, ""),
        "window_counts": recent.tolist(),
        **_load_to_json(recent, "window_"),
    }


def _load_to_json(counts: Counts, prefix: str) -> dict[str, Any]:
    load = Load.of(counts)
    if load is None:
        return {}
    return {
        f"{prefix}busiest": load.expert,
        f"{prefix}busiest_share": round(load.share, 6),
        f"{prefix}entropy_bits": round(load.entropy, 4),
        f"{prefix}effective_experts": round(load.effective, 2),
    }
