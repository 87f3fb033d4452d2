"""Metrics under vLLM's names, from engines that run and from engines that do not."""

import dataclasses
import queue
from collections.abc import Iterator

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from prometheus_client.parser import text_string_to_metric_families

from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.request import Completion, Request, RequestOutput, RequestTimes, TokenCounts
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.infer.step_loop import StepReport
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.serve.energy import EnergyTotals
from gemmule.serve.metrics import PREFIX, ServerMetrics
from gemmule.serve.request_metrics import Histogram

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
NO_ENERGY = EnergyTotals(None, None, None, None)


def parsed(metrics: ServerMetrics) -> Samples:
    text, media_type = metrics.render("text/plain")
    assert media_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    return parsed(metrics)[PREFIX + name, tuple(sorted(labels.items()))]


def finished(times: RequestTimes, *, reason: str = "stop", sample: int = 0) -> RequestOutput:
    counts = TokenCounts(prompt=7, cached=2, generated=3)
    completion = Completion("", (1, 2), reason, counts=counts, times=times)
    return RequestOutput(1, "", (9,), completion=completion, sample=sample)


def test_a_histogram_counts_as_prometheus_does() -> None:
    histogram = Histogram((1, 10))
    for observed in (0.5, 1, 2, 10, 11):
        histogram.observe(observed)
    assert histogram.buckets() == [("1.0", 2), ("10.0", 4), ("+Inf", 5)]
    assert histogram.total == 24.5


def test_times_and_sizes_of_requests() -> None:
    metrics = ServerMetrics(list, lambda: NO_ENERGY)
    model = metrics.model("m")
    model.submitted(SamplingParams(max_new_tokens=30, n=2))
    model.observe_step(StepReport(11.5, 0.5, {1: 1}), [RequestOutput(1, "", (5,))])
    model.observe_step(StepReport(12.0, 0.25, {1: 1}), [RequestOutput(1, "", (6,))])
    times = RequestTimes(queued=10.0, scheduled=11.0, first_token=12.0, finished=12.75)
    model.observe_step(StepReport(12.25, 0.5, {1: 1}), [finished(times)])
    model.observe_step(StepReport(13.0), [finished(RequestTimes(queued=1.0), reason="cancelled")])

    def total(name: str) -> tuple[float, float]:
        count = value(metrics, f"{name}_count", model_name="m")
        return count, value(metrics, f"{name}_sum", model_name="m")

    assert total("inter_token_latency_seconds") == (2, 0.75)
    assert total("request_queue_time_seconds") == (1, 1.0)
    assert total("time_to_first_token_seconds") == (1, 2.0)
    assert total("request_prefill_time_seconds") == (1, 1.0)
    assert total("request_decode_time_seconds") == (1, 0.75)
    assert total("e2e_request_latency_seconds") == (1, 2.75)
    assert total("request_prompt_tokens") == (2, 14)
    assert total("request_generation_tokens") == (2, 6)
    assert total("request_params_max_tokens") == (1, 30)
    assert total("request_params_n") == (1, 2)
    assert value(metrics, "request_success_total", model_name="m", finished_reason="stop") == 1
    assert value(metrics, "request_success_total", model_name="m", finished_reason="abort") == 1
    assert value(metrics, "requests_cancelled_total", model_name="m") == 1


def test_samples_share_a_prompt_and_have_gaps_of_their_own() -> None:
    metrics = ServerMetrics(list, lambda: NO_ENERGY)
    model = metrics.model("m")
    for started, sample in ((1.0, 0), (3.0, 1), (4.0, 0), (7.0, 1)):
        model.observe_step(StepReport(started), [RequestOutput(1, "", (5,), sample=sample)])
    for sample in (0, 1):
        model.observe_step(StepReport(8.0), [finished(RequestTimes(), sample=sample)])
    assert model.histograms["inter_token_latency_seconds"].total == 3 + 4 + 4 + 1
    assert sum(model.histograms["request_prompt_tokens"].counts) == 1
    assert sum(model.histograms["request_generation_tokens"].counts) == 2


@pytest.fixture
def engine() -> Iterator[AsyncEngine]:
    config = GemmaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=32, sliding_window=32,
        max_position_embeddings=128, query_pre_attn_scalar=8,
    )  # fmt: skip
    with AsyncEngine(TorchRunner(Gemma(config)), cache_tokens=512) as engine:
        yield engine


def test_what_the_engine_counts(engine: AsyncEngine) -> None:
    metrics = ServerMetrics(lambda: [("m", engine.stats())], lambda: NO_ENERGY)
    prompt = list(range(1, 40))
    for _ in range(2):
        request = Request(prompt, SamplingParams(max_new_tokens=5, temperature=0))
        done = [*outputs_of(engine, request)][-1].completion
        assert done is not None
    assert value(metrics, "num_requests_running", model_name="m") == 0
    assert value(metrics, "num_requests_waiting", model_name="m") == 0
    assert value(metrics, "kv_cache_usage_perc", model_name="m") == 0
    assert value(metrics, "prompt_tokens_total", model_name="m") == 78
    assert value(metrics, "generation_tokens_total", model_name="m") == 10
    assert value(metrics, "prefix_cache_queries_total", model_name="m") == 78
    assert value(metrics, "prefix_cache_hits_total", model_name="m") == done.counts.cached == 32
    assert value(metrics, "num_preemptions_total", model_name="m") == 0
    pool, page = engine.stats().pool, engine.stats().page_bytes
    assert pool.cached
    assert page
    for state in ("allocated", "cached", "free"):
        expected = getattr(pool, state) * page
        assert value(metrics, "kv_cache_bytes", model_name="m", state=state) == expected


def outputs_of(engine: AsyncEngine, request: Request) -> Iterator[RequestOutput]:
    outputs: queue.Queue[RequestOutput] = queue.Queue()
    engine.submit(request, outputs.put)
    while True:
        output = outputs.get(timeout=30)
        yield output
        if output.finished:
            return


def test_energy_is_there_if_it_is_measured() -> None:
    totals = NO_ENERGY
    metrics = ServerMetrics(list, lambda: totals)
    assert not any("energy" in name for name, _ in parsed(metrics))
    totals = EnergyTotals(metered=10.0, requests=7.0, idle=3.0, gco2e=None)
    assert value(metrics, "energy_joules_total", part="requests") == 7
    assert value(metrics, "energy_joules_total", part="idle") == 3
    assert not any("gco2e" in name for name, _ in parsed(metrics))
    totals = dataclasses.replace(totals, gco2e=0.5)
    assert value(metrics, "energy_gco2e_total") == 0.5


def test_http_requests_by_route_method_and_status() -> None:
    metrics = ServerMetrics(list, lambda: NO_ENERGY)
    metrics.observe_http("/v1/models", "GET", 200, None)
    metrics.observe_http("/v1/models", "GET", 204, None)
    metrics.observe_http("/v1/completions", "POST", 429, "queue_full")
    samples = parsed(metrics)
    ok = (("handler", "/v1/models"), ("method", "GET"), ("status", "2xx"))
    assert samples["http_requests_total", ok] == 2
    assert value(metrics, "requests_rejected_total", reason="queue_full") == 1


def test_the_process_is_measured_with_what_is_swapped_out() -> None:
    samples = parsed(ServerMetrics(list, lambda: NO_ENERGY))
    assert samples["process_cpu_seconds_total", ()] > 0
    assert samples["gemmule:process_anonymous_bytes", ()] > 1 << 20


def test_registries_are_not_shared() -> None:
    first, second = (ServerMetrics(list, lambda: NO_ENERGY) for _ in range(2))
    first.observe_http("/", "GET", 200, None)
    assert not any(name == "http_requests_total" for name, _ in parsed(second))


def test_openmetrics_if_asked_for() -> None:
    text, media_type = ServerMetrics(list, lambda: NO_ENERGY).render(
        "application/openmetrics-text; version=1.0.0"
    )
    assert media_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")
