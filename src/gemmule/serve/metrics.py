"""/metrics: Prometheus metrics of a server, under vLLM's names with the prefix `gemmule:`.

What an engine counts anyway is read from it when the metrics are. Each application has a registry
of its own.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from gemmule.infer.core.engine_core import EngineStats
from gemmule.serve.energy import EnergyTotals
from gemmule.serve.request_metrics import HISTOGRAMS, ModelMetrics

PREFIX = "gemmule:"

# From an engine's statistics: name -> description and value.
GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Samples that run.", lambda s: s.running),
    "num_requests_waiting": ("Samples that wait.", lambda s: s.waiting),
    "kv_cache_usage_perc": (
        "Fraction of the cache's pages that requests use; 1 is all.",
        lambda s: s.pool.allocated / s.pool.size,
    ),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prompt_tokens": ("Tokens of prompts, cached ones included.", lambda s: s.prompt_tokens),
    "generation_tokens": ("Tokens generated.", lambda s: s.generated_tokens),
    "prefix_cache_queries": (
        "Tokens that were looked up in the prefix cache.", lambda s: s.prompt_tokens),
    "prefix_cache_hits": (
        "Tokens that were found in the prefix cache.", lambda s: s.cached_tokens),
    "num_preemptions": ("Preemptions.", lambda s: s.preemptions),
    "spec_decode_num_draft_tokens": ("Draft tokens.", lambda s: s.draft_tokens),
    "spec_decode_num_accepted_tokens": ("Accepted draft tokens.", lambda s: s.accepted_tokens),
    "engine_steps": ("Steps of the engine.", lambda s: s.steps),
}  # fmt: skip


class ServerMetrics(Collector):
    """All metrics of a server."""

    def __init__(
        self,
        stats: Callable[[], Iterable[tuple[str, EngineStats]]],
        energy: Callable[[], EnergyTotals],
    ) -> None:
        """Makes a registry of its own.

        Args:
            stats: returns names and statistics of the models in memory; one that is loaded again
                counts from 0, which Prometheus understands.
            energy: returns the energy so far.
        """
        self._stats, self._energy = stats, energy
        self._models: dict[str, ModelMetrics] = {}
        self._http: Counter[tuple[str, str, str]] = Counter()
        self._rejected: Counter[str] = Counter()
        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def model(self, name: str) -> ModelMetrics:
        """The metrics of a model; they stay when it is unloaded."""
        return self._models.setdefault(name, ModelMetrics())

    def observe_http(self, handler: str, method: str, status: int, rejected: str | None) -> None:
        """Counts an HTTP request that has been answered.

        Args:
            handler: the route's path, with its parameters' names.
            method: HTTP method.
            status: HTTP status; counted by its first digit, as vLLM does; 0: there was no answer.
            rejected: why it was not taken, in a word.
        """
        self._http[handler, method, f"{status // 100}xx" if status else "none"] += 1
        if rejected is not None:
            self.observe_rejection(rejected)

    def observe_rejection(self, reason: str) -> None:
        """Counts a request that was not taken, also one that never reached the application."""
        self._rejected[reason] += 1

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics as text, and its media type, as the header Accept asks for."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def describe(self) -> list[Metric]:
        """Nothing: names are known when metrics are collected."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yields what is read from engines, requests and the meter."""
        stats = [*self._stats()]
        for name, (text, value) in GAUGES.items():
            yield _family(GaugeMetricFamily, name, text, [(m, value(s)) for m, s in stats])
        for name, (text, value) in COUNTERS.items():
            yield _family(CounterMetricFamily, name, text, [(m, value(s)) for m, s in stats])
        yield _cache_bytes(stats)
        yield from self._requests()
        yield from self._http_requests()
        yield from _energy(self._energy())
        yield from _anonymous_memory()

    def _requests(self) -> Iterator[Metric]:
        models = [*self._models.items()]
        for name, (text, _) in HISTOGRAMS.items():
            family = HistogramMetricFamily(PREFIX + name, text, labels=["model_name"])
            for model, metrics in models:
                histogram = metrics.histograms[name]
                family.add_metric([model], histogram.buckets(), histogram.total)
            yield family
        ended = CounterMetricFamily(
            f"{PREFIX}request_success", "Samples that have ended.",
            labels=["model_name", "finished_reason"],
        )  # fmt: skip
        for model, metrics in models:
            reasons = dict.fromkeys(("stop", "length", "abort", "error"), 0) | metrics.finished
            for reason, count in reasons.items():
                ended.add_metric([model, reason], count)
        yield ended
        aborted = [(model, metrics.finished["abort"]) for model, metrics in models]
        text = "Samples that were cancelled, mostly because their client had left."
        yield _family(CounterMetricFamily, "requests_cancelled", text, aborted)

    def _http_requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "http_requests", "HTTP requests.", labels=["handler", "method", "status"]
        )
        for labels, count in [*self._http.items()]:
            requests.add_metric(labels, count)
        yield requests
        rejected = CounterMetricFamily(
            f"{PREFIX}requests_rejected", "HTTP requests that were not taken.", labels=["reason"]
        )
        for reason, count in [*self._rejected.items()]:
            rejected.add_metric([reason], count)
        yield rejected


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    values: Iterable[tuple[str, float]],
) -> Metric:
    family = kind(PREFIX + name, text, labels=["model_name"])
    for model, value in values:
        family.add_metric([model], value)
    return family


def _cache_bytes(stats: Iterable[tuple[str, EngineStats]]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}kv_cache_bytes",
        "Memory for keys and values: used by requests, kept for the next ones, not in use.",
        labels=["model_name", "state"],
    )
    for model, s in stats:
        for state in ("allocated", "cached", "free"):
            family.add_metric([model, state], getattr(s.pool, state) * s.page_bytes)
    return family


def _energy(totals: EnergyTotals) -> Iterator[Metric]:
    """Nothing where nothing is measured."""
    if totals.requests is not None and totals.idle is not None:
        family = CounterMetricFamily(
            f"{PREFIX}energy_joules", "Energy of requests, and of the time without any.",
            labels=["part"],
        )  # fmt: skip
        family.add_metric(["requests"], totals.requests)
        family.add_metric(["idle"], totals.idle)
        yield family
    if totals.gco2e is not None:
        yield CounterMetricFamily(
            f"{PREFIX}energy_gco2e", "Grams of CO2 equivalent of it all.", value=totals.gco2e
        )


def _anonymous_memory() -> Iterator[Metric]:
    """The process's own memory, swapped out or not: a leak shows here, whatever the system does."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return
    kilobytes = sum(map(int, re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", status, re.M)))
    yield GaugeMetricFamily(
        f"{PREFIX}process_anonymous_bytes", "Anonymous memory of the process, with what is swapped"
        " out.", value=kilobytes * 1024,
    )  # fmt: skip
