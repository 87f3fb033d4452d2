"""Evaluates a model on benchmarks through lm-eval: scores with intervals, every sample kept."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from gemmule import files, stats
from gemmule.console import counting
from gemmule.data import benchmark_texts, ngrams
from gemmule.errors import DataError, UserError, first_line
from gemmule.evals import contamination
from gemmule.evals.benchmarks import prompt_formats, published
from gemmule.evals.benchmarks.lm_eval_tasks import (
    LoadedBenchmark,
    Unavailable,
    first_documents,
    load_tasks,
)
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.benchmarks.silence_lm_eval import silenced
from gemmule.evals.benchmarks.suites import SuiteEntry
from gemmule.evals.eval_target import EvalTarget
from gemmule.evals.lm_eval_model import GemmuleLM
from gemmule.evals.response_cache import ResponseCache
from gemmule.runs.schema_evals import Benchmarks
from gemmule.sandbox import Sandbox

RESULT, SAMPLES = "benchmarks.json", "benchmarks.samples.jsonl"
RESPONSES = "benchmarks.answers.jsonl"
FORMAT = 1
LmEvalSample = dict[str, Any]
Loaded = Mapping[str, LoadedBenchmark]  # by the benchmark's name
Samples = Mapping[str, Sequence[LmEvalSample]]  # by the task's name


def evaluate_benchmarks(target: EvalTarget, settings: EvalSettings) -> dict[str, Any]:
    """Evaluates a model, and writes benchmarks.json and benchmarks.samples.jsonl to its folder.

    Responses are kept as they arrive: after an interruption the same call resumes.

    Args:
        target: the model.
        settings: which benchmarks, and how.

    Returns:
        The content of benchmarks.json.

    Raises:
        UserError: for broken files, an unknown benchmark, another model's responses in the folder,
            or if no benchmark is available at all.
    """
    with silenced():
        return _evaluate(target, settings)


def _evaluate(target: EvalTarget, settings: EvalSettings) -> dict[str, Any]:
    began = time.monotonic()
    entries = settings.entries()
    sandbox, why_no_sandbox = _sandbox(entries, settings)
    loaded: dict[str, LoadedBenchmark] = {}
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries:
        try:
            loaded[entry.benchmark.name] = load_tasks(entry.benchmark, settings.data_dir, sandbox)
        except Unavailable as e:
            reason = why_no_sandbox if entry.benchmark.sandboxed and why_no_sandbox else str(e)
            rows[entry.benchmark.name] = {**_about(entry), "missing": reason}
    if not loaded:
        reasons = "; ".join(f"{row['title']}: {row['missing']}" for row in rows.values())
        raise DataError(f"none of the benchmarks is available ({reasons}): nothing was written")
    depends_on = {"chat": settings.chat, **target.cache_key}
    lm = GemmuleLM(target.lm, cache=ResponseCache(target.folder / RESPONSES, depends_on))
    lm.label = target.name
    limits = {entry.benchmark.name: entry.limit for entry in entries}
    samples = _run(lm, loaded, limits, settings.chat)
    for name, benchmark in loaded.items():
        of_tasks = {task: samples[task] for task in benchmark.tasks}
        rows[name] = _row(benchmark, of_tasks, limits[name], lm)
    _add_contamination(rows, loaded, samples, target, settings)
    result = {
        "format": FORMAT,
        "kind": "benchmarks",
        "model": {**target.identity, "name": target.name},
        "settings": settings.model_dump(mode="json"),
        "lm_eval": metadata.version("lm_eval"),
        "bos": "once, before every prompt",
        "sandbox": None if sandbox is None else sandbox.json(),
        "published": {"source": published.SOURCE, "parameters": dict(published.PARAMETERS)},
        "rows": {entry.benchmark.name: rows[entry.benchmark.name] for entry in entries},
        "formats": {},
        "samples": SAMPLES,
    }
    if settings.formats:
        result["formats"] = _formats(lm, loaded, limits, settings)
    result["seconds"] = time.monotonic() - began
    _write_samples(target, loaded, samples)
    Benchmarks.parse(result, RESULT).write(target.folder / RESULT)
    return result


def _sandbox(entries: Sequence[SuiteEntry], settings: EvalSettings) -> tuple[Sandbox | None, str]:
    """The sandbox for programs if a benchmark needs one, or why there is none."""
    if not any(entry.benchmark.sandboxed for entry in entries):
        return None, ""
    try:
        return Sandbox.open(accept_weaker=settings.accept_weaker_sandbox), ""
    except UserError as e:
        return None, first_line(e)


def _run(
    lm: GemmuleLM, loaded: Loaded, limits: Mapping[str, int | None], chat: bool
) -> dict[str, list[LmEvalSample]]:
    """Runs lm-eval; returns its samples by task."""
    if not loaded:
        return {}
    from lm_eval import evaluator

    tasks, chosen = {}, {}
    for name, benchmark in loaded.items():
        for task_name, task in benchmark.tasks.items():
            tasks[task_name] = task
            chosen[task_name] = first_documents(len(task.eval_docs), limits[name])
    results = evaluator.evaluate(
        lm,
        {"tasks": tasks, "groups": {}, "group_map": {}},
        samples=chosen,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=True,  # in the sandbox
    )
    return dict(results["samples"])


def _about(entry: SuiteEntry) -> dict[str, Any]:
    benchmark = entry.benchmark
    return {
        "title": benchmark.title,
        "shots": benchmark.shots,
        "metric": benchmark.metric,
        "published": dict(published.published(benchmark.name)),
    }


def _row(
    loaded: LoadedBenchmark, samples: Samples, limit: int | None, lm: GemmuleLM
) -> dict[str, Any]:
    benchmark = loaded.benchmark
    counted = {task: _counted(loaded, of_task) for task, of_task in samples.items()}
    groups = [_scores(of_task, benchmark.metric) for of_task in counted.values()]
    estimate = stats.stratified(groups, equal=benchmark.equal)
    chance = benchmark.chance
    shots = {int(task.config.num_fewshot or 0) for task in loaded.tasks.values()}
    notes = list(loaded.notes)
    truncated = sum(lm.truncated[task] for task in loaded.tasks)
    if truncated:
        notes.append(
            f"{truncated} requests were longer than the model's context: cut at their beginning"
        )
    tasks = {
        task: {
            **stats.mean(_scores(of_task, benchmark.metric)).json(),
            "of": len(loaded.tasks[task].eval_docs),
            "version": loaded.tasks[task].VERSION,
        }
        for task, of_task in counted.items()
    }
    hashes = sorted(
        f"{task} {sample['doc_id']} {sample['prompt_hash']} {sample['target_hash']}"
        for task, of_task in counted.items()
        for sample in of_task
    )
    return {
        **_about(SuiteEntry(benchmark, limit)),
        "shots": min(shots) if len(shots) == 1 else sorted(shots),
        "filter": benchmark.filter,
        **estimate.json(),
        "of": sum(task["of"] for task in tasks.values()),
        "limit": limit,
        "chance": chance,
        "at_chance": chance is not None and estimate.low <= chance <= estimate.high,
        "truncated": truncated,
        "notes": notes,
        "files": [dict(file) for file in loaded.files],
        "prompts": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "tasks": tasks,
    }


def _counted(loaded: LoadedBenchmark, samples: Sequence[LmEvalSample]) -> list[LmEvalSample]:
    """The samples of the benchmark's filter, one for each document."""
    return [sample for sample in samples if sample["filter"] == loaded.benchmark.filter]


def _scores(samples: Sequence[LmEvalSample], metric: str) -> list[float]:
    return [float(sample[metric]) for sample in samples]


def _text(sample: LmEvalSample) -> str:
    """The text of a document's question and answers, without few-shot examples."""
    return " ".join(benchmark_texts.leaves(sample["doc"]))


def _add_contamination(
    rows: dict[str, dict[str, Any]],
    loaded: Loaded,
    samples: Samples,
    target: EvalTarget,
    settings: EvalSettings,
) -> None:
    """Adds to each row which of its documents are in the model's training text."""
    texts = {
        task: [_text(sample) for sample in _counted(benchmark, samples[task])]
        for benchmark in loaded.values()
        for task in benchmark.tasks
    }
    with counting("contamination") as progress:
        report = contamination.contaminated(
            target.path, texts, data=settings.data, progress=progress
        )
    for name, benchmark in loaded.items():
        overlaps = {task: report.tasks[task] for task in benchmark.tasks if task in report.tasks}
        rows[name]["contamination"] = {
            "known": report.known,
            "why": report.why,
            "rule": ngrams.RULE,
            "documents": sum(len(overlap.contaminated) for overlap in overlaps.values()),
            "judged": sum(o.documents - o.too_short for o in overlaps.values()),
            "by_task": {task: o.contaminated for task, o in overlaps.items() if o.contaminated},
        }


def _formats(
    lm: GemmuleLM,
    loaded: Loaded,
    limits: Mapping[str, int | None],
    settings: EvalSettings,
) -> dict[str, Any]:
    """The spread of each benchmark's score over the twelve formats."""
    spreads = {}
    for name, benchmark in loaded.items():
        scores = []
        for variant in prompt_formats.variants(benchmark.benchmark):
            tasks = load_tasks(variant.benchmark, settings.data_dir)
            samples = _run(lm, {name: tasks}, limits, settings.chat)
            groups = [_scores(_counted(tasks, samples[task]), "acc") for task in tasks.tasks]
            scores.append({"format": variant.description, **stats.stratified(groups).json()})
        if scores:
            spreads[name] = {
                "title": benchmark.benchmark.title,
                **prompt_formats.spread(name, scores),
            }
    return spreads


def _write_samples(target: EvalTarget, loaded: Loaded, samples: Samples) -> None:
    with files.atomic_path(target.folder / SAMPLES) as path, path.open("w") as out:
        for name, benchmark in loaded.items():
            for task in benchmark.tasks:
                for sample in _counted(benchmark, samples[task]):
                    line = {"benchmark": name, "task": task, **_written(benchmark, sample)}
                    out.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")


def _written(loaded: LoadedBenchmark, sample: LmEvalSample) -> dict[str, Any]:
    """A sample as it is written: the prompt once, the response, and its score."""
    requests = sample["arguments"]
    written = {
        "document": sample["doc_id"],
        "prompt": requests[0][0],
        "target": sample["target"],
        "score": float(sample[loaded.benchmark.metric]),
    }
    if loaded.benchmark.kind == "choice" and not isinstance(sample["resps"][0][0], str):
        if any(request[0] != requests[0][0] for request in requests):
            written["prompt"] = [request[0] for request in requests]
        written["choices"] = [request[1] for request in requests]
        written["log_likelihoods"] = [response[0][0] for response in sample["resps"]]
    else:
        written["answer"] = sample["resps"][0][0]
        written["read_as"] = sample["filtered_resps"][0]
    return written
