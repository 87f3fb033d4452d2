"""Evaluates a model on safety benchmarks: questions, responses, verdicts, metrics, result files."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field

from gemmule import files
from gemmule.config import Config
from gemmule.console import Progress
from gemmule.errors import DataError
from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, Unavailable, load_tasks
from gemmule.evals.benchmarks.silence_lm_eval import silenced
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.response_cache import ResponseCache, request_key
from gemmule.evals.safety import model_requests, suite
from gemmule.evals.safety.benchmark import SafetyBenchmark
from gemmule.evals.safety.continuations import MAX_NEW_TOKENS
from gemmule.evals.safety.metric import SafetyMetric, SafetySample, Values, estimate
from gemmule.evals.safety.verdict import NO_SCORER, ToxicityScorer, ToxicityVerdict
from gemmule.runs.schema_evals import Safety

RESULT = "safety.json"
SAMPLES = "safety.samples.jsonl"
RESPONSES = "safety.journal.jsonl"
FORMAT = 1
# The tasks of each benchmark by its name, or why they are not available.
Documents = Mapping[str, LoadedBenchmark | str]

_VERDICTS_AT_ONCE = 256


class SafetySettings(Config):
    """Which safety benchmarks are evaluated, and how.

    Attributes:
        tasks: names of benchmarks; None: all.
        data_dir: folder of local benchmark files; None: the hub.
        limit: maximum number of questions of each task; the first ones are taken, from every group
            of documents in proportion. None: the benchmark's usual limit, if it has one.
        temperature: sampling temperature of continuations; 0 takes the most likely token.
        seed: seed of the sampler.
        max_new_tokens: longest continuation, in tokens.
    """

    tasks: tuple[str, ...] | None = None
    data_dir: Path | None = None
    limit: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)

    @property
    def generation(self) -> model_requests.GenerationSettings:
        """How continuations are generated."""
        return model_requests.GenerationSettings(self.temperature, self.seed, self.max_new_tokens)


def evaluate_safety(
    target: EvalTarget,
    lm: model_requests.RequestModel,
    settings: SafetySettings,
    documents: Documents,
    scorer: ToxicityScorer | None,
    cache: ResponseCache,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Evaluates a model, and writes safety.json and safety.samples.jsonl to its folder.

    Args:
        target: the model.
        lm: the same model as lm-eval uses it.
        settings: which benchmarks, and how.
        documents: their documents, from `load_documents`.
        scorer: scores the toxicity of continuations; None if no benchmark needs it.
        cache: keeps verdicts as they arrive; `lm` keeps responses in the same cache.
        progress: called as progress(done, total, what) while continuations are scored.

    Returns:
        The content of safety.json.

    Raises:
        UserError: for a scorer that does not work.
    """
    began = time.monotonic()
    scored_by = scorer.describe() if scorer is not None else None
    about_benchmarks: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for benchmark in suite.chosen(settings.tasks):
        tasks = documents[benchmark.name]
        if isinstance(tasks, str):
            metrics |= {
                m.name: {**_about(m, benchmark), "missing": tasks} for m in benchmark.metrics
            }
            continue
        with silenced():
            asked, available = model_requests.questions(
                benchmark, tasks, settings.limit, settings.generation
            )
        answered = model_requests.ask(asked, lm)
        if benchmark.scored:
            assert scorer is not None
            assert scored_by is not None
            answered = _scored(benchmark, answered, scorer, scored_by, cache, progress)
        about = _benchmark(benchmark, tasks, answered, available, settings)
        about["truncated"] = sum(model_requests.too_long(question, lm) for question in asked)
        about_benchmarks[benchmark.name] = about
        metrics |= {m.name: _metric(m, benchmark, answered) for m in benchmark.metrics}
        samples += answered
    result = {
        "format": FORMAT,
        "kind": "safety",
        "model": {**target.identity, "name": target.name},
        "settings": settings.model_dump(mode="json"),
        "lm_eval": metadata.version("lm_eval"),
        "scorer": scored_by,
        "report": {"source": suite.REPORT, "sizes": list(suite.SIZES)},
        "unit": "percent",
        "figures": metrics,
        "benchmarks": about_benchmarks,
        "samples": SAMPLES,
        "seconds": time.monotonic() - began,
    }
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    files.write_text(target.folder / SAMPLES, "".join(lines))
    Safety.parse(result, RESULT).write(target.folder / RESULT)
    return result


def open_cache(target: EvalTarget) -> ResponseCache:
    """The cache of a model's responses and the verdicts on them.

    Raises:
        ConfigError: if the file has the responses of another model.
        DataError: if it is damaged.
    """
    return ResponseCache(target.folder / RESPONSES, target.cache_key)


def load_documents(settings: SafetySettings, has_scorer: bool) -> Documents:
    """Reads all documents, so that errors in them are found before a model is loaded.

    Args:
        settings: which benchmarks, and where their files are.
        has_scorer: whether there is a toxicity scorer.

    Raises:
        ConfigError: for an unknown benchmark.
        DataError: for a broken file, naming file and line, or a folder that does not exist.
        MissingExtraError: without lm-eval.
    """
    benchmarks = suite.chosen(settings.tasks)
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        raise DataError(f"no folder {settings.data_dir}: give one with benchmark files in it")
    with silenced():
        return {b.name: _load(b, settings, has_scorer) for b in benchmarks}


def _load(
    benchmark: SafetyBenchmark, settings: SafetySettings, has_scorer: bool
) -> LoadedBenchmark | str:
    """The tasks, or why they are not available."""
    if benchmark.scored and not has_scorer:
        return NO_SCORER
    if settings.data_dir is None and benchmark.local_only:
        return benchmark.local_only
    try:
        return load_tasks(benchmark.benchmark, settings.data_dir)
    except Unavailable as e:
        return f"not measured: {e}"


def _scored(
    benchmark: SafetyBenchmark,
    samples: Sequence[dict[str, Any]],
    scorer: ToxicityScorer,
    scored_by: Mapping[str, Any],
    cache: ResponseCache,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Samples with verdicts. An empty response is not toxic, and is not scored."""
    depends_on = {k: v for k, v in scored_by.items() if k != "name"}
    keys = [request_key("verdict", depends_on, s["prompt"], s["answer"]) for s in samples]
    missing = [
        (key, (s["prompt"], s["answer"]))
        for key, s in zip(keys, samples, strict=True)
        if key not in cache.responses and s["answer"].strip()
    ]
    what = f"{benchmark.benchmark.title}: verdicts"
    for start in range(0, len(missing), _VERDICTS_AT_ONCE):
        group = missing[start : start + _VERDICTS_AT_ONCE]
        before = len(samples) - len(missing) + start
        of_group = functools.partial(_group_progress, progress, what, before, len(samples))
        verdicts = scorer.score([exchange for _, exchange in group], of_group)
        cache.add(
            (key, dataclasses.asdict(verdict))
            for (key, _), verdict in zip(group, verdicts, strict=True)
        )
    harmless = dataclasses.asdict(ToxicityVerdict(0.0))
    return [
        {**s, **cache.responses.get(key, harmless)} for key, s in zip(keys, samples, strict=True)
    ]


def _group_progress(progress: Progress, what: str, before: int, total: int, done: int) -> None:
    progress(before + done, total, what)


def _about(metric: SafetyMetric, benchmark: SafetyBenchmark) -> dict[str, Any]:
    return {
        "title": metric.title,
        "benchmark": benchmark.name,
        "better": metric.better,
        "chance": metric.chance,
        "report": dict(zip(suite.SIZES, metric.report, strict=True)) if metric.report else {},
    }


def _metric(
    metric: SafetyMetric, benchmark: SafetyBenchmark, samples: Sequence[SafetySample]
) -> dict[str, Any]:
    about = _about(metric, benchmark)
    whole = estimate(metric, metric.values(samples))
    if whole is None:
        return {**about, "missing": "not measured: none of the questions asked counts for it"}
    groups: dict[str, list[SafetySample]] = {}
    for sample in samples:
        for part in metric.parts(sample):
            groups.setdefault(part, []).append(sample)
    parts = {}
    for name in sorted(groups):
        of_part = estimate(metric, metric.values(groups[name]))
        if of_part is not None:
            parts[name] = of_part.json()
    return {**about, **whole.json(), "parts": parts}


def _benchmark(
    benchmark: SafetyBenchmark,
    tasks: LoadedBenchmark,
    samples: Sequence[SafetySample],
    available: int,
    settings: SafetySettings,
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(str(s["key"]) for s in samples).encode())
    about: dict[str, Any] = {
        "title": benchmark.benchmark.title,
        "tasks": list(tasks.tasks),
        "asked": len(samples),
        "there": available,
        "prompts": digest.hexdigest(),
        "how": list(benchmark.notes),
        "notes": list(tasks.notes),
        "files": [dict(file) for file in tasks.files],
    }
    if benchmark.scored:
        about["empty"] = sum(not s["answer"].strip() for s in samples)
        about["cut_by_scorer"] = sum(bool(s["cut"]) for s in samples)
        harms: dict[str, list[float]] = {}
        for sample in samples:
            for harm, value in sample["harms"].items():
                harms.setdefault(harm, []).append(value)
        about["harms"] = {h: 100 * sum(v) / len(samples) for h, v in harms.items()}
        how = "the most likely tokens"
        if settings.temperature > 0:
            how = f"sampled at temperature {settings.temperature:g} with seed {settings.seed}"
        about["written"] = f"{how}, at most {settings.max_new_tokens} tokens"
    return about


def read_result(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a result and its samples.

    Args:
        path: a safety.json, or the folder that contains it.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        result = files.read_json(file)
    except (OSError, ValueError) as e:
        raise DataError(f"no readable safety result at {file} ({e})") from None
    if not isinstance(result, dict) or result.get("kind") != "safety":
        raise DataError(f"{file} is not a result of gemmule safety")
    if result.get("format") != FORMAT or not isinstance(result.get("figures"), dict):
        raise DataError(f"{file} was written by another version: evaluate again")
    return result, read_samples(file.parent)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """Reads the samples of a finished result.

    Raises:
        DataError: if they are missing or damaged, naming file and line.
    """
    path = folder / SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"no samples at {path} ({e}): evaluate again") from None
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            sample["key"], sample["benchmark"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a sample: evaluate again") from None
        samples.append(sample)
    return samples


def values_of(samples: Sequence[SafetySample], name: str) -> Values:
    """The value of a metric for each document."""
    for benchmark in suite.ALL:
        for metric in benchmark.metrics:
            if metric.name == name:
                return metric.values([s for s in samples if s["benchmark"] == benchmark.name])
    raise KeyError(name)
