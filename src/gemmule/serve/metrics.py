"""/metrics: Prometheus metrics of a server, under vLLM's names with the prefix `gemmule:`.

What an engine counts anyway is read from it when the metrics are. Times and sizes of requests are
observed in the engine's thread, once for each step, without locks. Each application has a registry
of its own.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from gemmule.infer.core.engine_core import EngineStats
from gemmule.infer.core.request import Completion, RequestOutput
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.step_loop import StepReport
from gemmule.serve.energy import EnergyTotals

PREFIX = "gemmule:"

# vLLM's buckets, with a few below for models that are faster than 100 tokens/s.
FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_SECONDS = (
    0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(digit * 10**power for power in range(5) for digit in (1, 2, 5))
SAMPLES = (1, 2, 5, 10, 20)

HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("Time to first token.", FIRST_TOKEN_SECONDS),
    "inter_token_latency_seconds": ("Time between two steps that gave tokens.", TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("Time from arrival to end.", REQUEST_SECONDS),
    "request_queue_time_seconds": ("Time spent waiting.", REQUEST_SECONDS),
    "request_prefill_time_seconds": ("Time from first step to first token.", REQUEST_SECONDS),
    "request_decode_time_seconds": ("Time from first token to end.", REQUEST_SECONDS),
    "request_prompt_tokens": ("Tokens of the prompt.", TOKENS),
    "request_generation_tokens": ("Tokens generated.", TOKENS),
    "request_params_max_tokens": ("Largest number of tokens that was asked for.", TOKENS),
    "request_params_n": ("Number of samples that was asked for.", SAMPLES),
}

# vLLM's reasons by ours.
_REASONS = {"context": "length", "cancelled": "abort"}

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


class Histogram:
    """Counts values in buckets, without a lock: one thread observes, another may read.

    Attributes:
        counts: number of values in each bucket, the last being those above all bounds.
        total: sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus has them."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        running, result = 0.0, list[tuple[str, float]]()
        for name, count in zip(names, tuple(self.counts), strict=True):
            running += count
            result.append((name, running))
        return result


class ModelMetrics:
    """Times and sizes of the requests of one model.

    Attributes:
        histograms: by name, without prefix.
        finished: samples that have ended, by vLLM's reasons.
    """

    def __init__(self) -> None:
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}
        self.finished: Counter[str] = Counter()
        self._last_tokens: dict[tuple[int, int], float] = {}

    def submitted(self, params: SamplingParams) -> None:
        """Observes what a request asks for; called in the event loop's thread."""
        self.histograms["request_params_max_tokens"].observe(params.max_new_tokens)
        self.histograms["request_params_n"].observe(params.n)

    def observe_step(self, report: StepReport, outputs: Iterable[RequestOutput]) -> None:
        """Observes a step; called in the engine's thread."""
        now = report.started + report.seconds
        between = self.histograms["inter_token_latency_seconds"]
        for output in outputs:
            sample = output.request_id, output.sample
            if output.ids:
                last = self._last_tokens.get(sample)
                if last is not None:
                    between.observe(now - last)
                self._last_tokens[sample] = now
            if output.completion is not None:
                self._last_tokens.pop(sample, None)
                self._finish(output.completion, first=output.sample == 0)

    def _finish(self, completion: Completion, *, first: bool) -> None:
        reason = completion.finish_reason
        self.finished[_REASONS.get(reason, reason)] += 1
        counts, times = completion.counts, completion.times
        if first:
            self.histograms["request_prompt_tokens"].observe(counts.prompt)
        self.histograms["request_generation_tokens"].observe(counts.generated)
        for name, start, end in (
            ("e2e_request_latency_seconds", times.queued, times.finished),
            ("request_queue_time_seconds", times.queued, times.scheduled),
            ("time_to_first_token_seconds", times.queued, times.first_token),
            ("request_prefill_time_seconds", times.scheduled, times.first_token),
            ("request_decode_time_seconds", times.first_token, times.finished),
        ):
            if start is not None and end is not None:
                self.histograms[name].observe(end - start)


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
        self.registry = CollectorRegistry()
        self._http = prometheus_client.Counter(
            "http_requests", "HTTP requests.", ("handler", "method", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._rejected = prometheus_client.Counter(
            f"{PREFIX}requests_rejected", "HTTP requests that were not taken.", ("reason",),
            registry=self.registry,
        )  # fmt: skip
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
            status: HTTP status; counted by its first digit, as vLLM does.
            rejected: why it was not taken, in a word.
        """
        self._http.labels(handler, method, f"{status // 100}xx").inc()
        if rejected is not None:
            self._rejected.labels(rejected).inc()

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
