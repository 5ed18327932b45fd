"""What is counted and timed, for Prometheus, by prometheus-client and a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dsv3c.runtime.engine.generation import Generation
from dsv3c.runtime.engine.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from dsv3c.runtime.model import Model
    from dsv3c.runtime.server.models import Models, Served

_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """models: what gauges look at when somebody asks."""

    def __init__(self, models: Models) -> None:
        self.registry = registry = CollectorRegistry()
        by_model = ["model"]
        self.requests = Counter("dsv3c_http_requests", "Requests answered", ["path", "status"], registry=registry)
        self.finished = Counter(
            "dsv3c_answers", "Results that ended, by their reason", [*by_model, "reason"], registry=registry
        )
        self.tokens = Counter("dsv3c_tokens", "Tokens, by what they were", [*by_model, "kind"], registry=registry)
        self.drafts = Counter("dsv3c_draft_tokens", "Drafted tokens", [*by_model, "outcome"], registry=registry)
        self.first = Histogram(
            "dsv3c_time_to_first_token_seconds",
            "From the request to its first token",
            by_model,
            buckets=_FIRST,
            registry=registry,
        )
        self.next = Histogram(
            "dsv3c_inter_token_seconds", "From a token to the next", by_model, buckets=_NEXT, registry=registry
        )
        self.whole = Histogram(
            "dsv3c_answer_seconds", "From the request to its end", by_model, buckets=_WHOLE, registry=registry
        )
        registry.register(_Now(models))
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class Meter:
    """Metrics of one model."""

    metrics: Metrics
    model: str

    def first_token(self, seconds: float) -> None:
        self.metrics.first.labels(self.model).observe(seconds)

    def next_token(self, seconds: float) -> None:
        self.metrics.next.labels(self.model).observe(seconds)

    def left(self, prompt: int, tokens: int) -> None:
        """Nobody waited for the end of a result that had so many tokens."""
        self.metrics.finished.labels(self.model, "cancelled").inc()
        self.metrics.tokens.labels(self.model, "prompt").inc(prompt)
        self.metrics.tokens.labels(self.model, "generated").inc(tokens)

    def ended(self, answer: Generation, seconds: float) -> None:
        self.metrics.finished.labels(self.model, answer.finish_reason).inc()
        self.metrics.whole.labels(self.model).observe(seconds)
        counted = {
            "prompt": answer.prompt_tokens,
            "prompt_cached": answer.cached_tokens,
            "generated": len(answer.token_ids),
        }
        for kind, count in counted.items():
            self.metrics.tokens.labels(self.model, kind).inc(count)
        drafted = answer.drafted
        self.metrics.drafts.labels(self.model, "accepted").inc(drafted.accepted)
        self.metrics.drafts.labels(self.model, "rejected").inc(drafted.proposed - drafted.accepted)


class _Now(Collector):
    """How things stand at the moment."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        served = list(self._models)
        for name, (text, value) in _OF_MODELS.items():
            yield _gauge(name, text, {each.name: float(value(each)) for each in served})
        faults = CounterMetricFamily("dsv3c_model_faults", "Faults of the device", labels=["model"])
        for each in served:
            faults.add_metric([each.name], each.faults)
        yield faults
        loaded = {each.name: each.loaded.model for each in served if each.loaded is not None}
        for name, (text, count) in _OF_CACHES.items():
            yield _gauge(name, text, {model: float(count(loaded[model])) for model in loaded})


_OF_MODELS: Mapping[str, tuple[str, Callable[[Served], float]]] = {
    "dsv3c_model_loaded": ("Whether a model is in memory", lambda each: each.loaded is not None),
    "dsv3c_requests_working": ("Requests at work", lambda each: len(each.admission.working)),
    "dsv3c_requests_waiting": ("Requests in the queue", lambda each: len(each.admission.waiting)),
    "dsv3c_batch_sequences": ("Sequences at work", lambda each: each.admission.busy),
    "dsv3c_batch_slots": ("Sequences that may be at work", lambda each: each.admission.slots),
}
_OF_CACHES: Mapping[str, tuple[str, Callable[[Model], float]]] = {
    "dsv3c_cache_pages": ("Pages of the cache", lambda model: model.session.pool.pages),
    "dsv3c_cache_pages_free": ("Pages that are free", lambda model: model.session.pool.free_pages),
    "dsv3c_prefix_cache_pages": ("Pages kept of former requests", lambda model: _prefixes(model).cached_pages),
    "dsv3c_prefix_cache_lookups": ("Tokens of prompts looked for there", lambda model: _prefixes(model).lookups),
    "dsv3c_prefix_cache_hits": ("Tokens of prompts that were found there", lambda model: _prefixes(model).hits),
}


def _prefixes(model: Model) -> PrefixCache:
    found = model.engine.scheduler.prefix_cache
    assert found is not None  # a server loads models with one
    return found


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model"])
    for model, value in values.items():
        family.add_metric([model], value)
    return family
