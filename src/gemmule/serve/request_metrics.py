"""Times and sizes of requests: observed once a step, in the engine's thread, without a lock."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from gemmule.infer.core.request import Completion, RequestOutput
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.step_loop import StepReport

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
        # Some clients send huge numbers for "no limit": they would be all that the sum shows.
        most = min(params.max_new_tokens, TOKENS[-1])
        self.histograms["request_params_max_tokens"].observe(most)
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
