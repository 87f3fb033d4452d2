"""Measures a model on benchmarks through lm-eval; results with intervals, every sample kept."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from gemmule import files, stats
from gemmule.console import counting
from gemmule.data import ngrams
from gemmule.errors import DataError, UserError, first_line
from gemmule.evals import contamination
from gemmule.evals.benchmarks import prompt_formats, published
from gemmule.evals.benchmarks.lm_eval_tasks import Loaded, Unavailable, load_tasks
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.benchmarks.silence_lm_eval import quietly
from gemmule.evals.benchmarks.suites import Entry
from gemmule.evals.eval_target import Subject
from gemmule.evals.lm_eval_model import GemmuleLM
from gemmule.evals.response_cache import Journal
from gemmule.sandbox import Sandbox

RESULT, SAMPLES, ANSWERS = "benchmarks.json", "benchmarks.samples.jsonl", "benchmarks.answers.jsonl"
FORMAT = 1
Sample = dict[str, Any]


def measure(subject: Subject, settings: EvalSettings) -> dict[str, Any]:
    """Measures, and writes benchmarks.json and benchmarks.samples.jsonl into the subject's folder.

    The same call goes on where a stopped one was: answers are kept as they come.

    Args:
        subject: the model.
        settings: what to measure.

    Raises:
        UserError: for broken files, an unknown benchmark, another model's results in the folder,
            or where no benchmark is to be had at all.
    """
    with quietly():
        return _measure(subject, settings)


def _measure(subject: Subject, settings: EvalSettings) -> dict[str, Any]:
    began = time.monotonic()
    entries = settings.entries()
    sandbox, why_not = _sandbox(entries, settings)
    loaded: dict[str, Loaded] = {}
    rows: dict[str, dict[str, Any]] = {}
    for entry in entries:
        try:
            loaded[entry.benchmark.name] = load_tasks(entry.benchmark, settings.data_dir, sandbox)
        except Unavailable as e:
            reason = why_not if entry.benchmark.sandboxed and why_not else str(e)
            rows[entry.benchmark.name] = {**_about(entry), "missing": reason}
    if not loaded:
        reasons = "; ".join(f"{row['title']}: {row['missing']}" for row in rows.values())
        raise DataError(f"none of the benchmarks can be measured ({reasons}): nothing was written")
    journal = Journal(subject.folder / ANSWERS, {"chat": settings.chat, **subject.decides})
    lm = GemmuleLM(subject.lm, journal=journal, label=subject.name)
    limits = {entry.benchmark.name: entry.limit for entry in entries}
    samples = _ask(lm, loaded, limits, settings.chat)
    for name, tasks in loaded.items():
        of_tasks = {task: samples[task] for task in tasks.tasks}
        rows[name] = _row(tasks, of_tasks, limits[name], lm)
    _mark_contaminated(rows, loaded, samples, subject, settings)
    result = {
        "format": FORMAT,
        "kind": "benchmarks",
        "model": {**subject.identity, "name": subject.name},
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
    _write_samples(subject, loaded, samples)
    files.write_json(subject.folder / RESULT, result)
    return result


def _sandbox(entries: Sequence[Entry], settings: EvalSettings) -> tuple[Sandbox | None, str]:
    """Where programs run, or why nowhere."""
    if not any(entry.benchmark.sandboxed for entry in entries):
        return None, ""
    try:
        return Sandbox.open(accept_weaker=settings.accept_weaker_sandbox), ""
    except UserError as e:
        return None, first_line(e)


def _ask(
    lm: GemmuleLM,
    loaded: Mapping[str, Loaded],
    limits: Mapping[str, int | None],
    chat: bool,
) -> dict[str, list[Sample]]:
    """Every document's sample, by task, as lm-eval makes them."""
    if not loaded:
        return {}
    from lm_eval import evaluator

    tasks, chosen = {}, {}
    for name, benchmark in loaded.items():
        for task_name, task in benchmark.tasks.items():
            tasks[task_name] = task
            there = len(task.eval_docs)
            chosen[task_name] = list(range(min(there, limits[name] or there)))
    found = evaluator.evaluate(
        lm,
        {"tasks": tasks, "groups": {}, "group_map": {}},
        samples=chosen,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        confirm_run_unsafe_code=True,  # in the sandbox
    )
    return dict(found["samples"])


def _about(entry: Entry) -> dict[str, Any]:
    benchmark = entry.benchmark
    return {
        "title": benchmark.title,
        "shots": benchmark.shots,
        "metric": benchmark.metric,
        "published": dict(published.published(benchmark.name)),
    }


def _row(
    loaded: Loaded,
    samples: Mapping[str, Sequence[Sample]],
    limit: int | None,
    lm: GemmuleLM,
) -> dict[str, Any]:
    benchmark = loaded.benchmark
    counted = {task: _counted(loaded, some) for task, some in samples.items()}
    groups = [[_value(sample, benchmark.metric) for sample in some] for some in counted.values()]
    estimate = stats.stratified(groups, equal=benchmark.equal)
    chance = benchmark.chance
    shots = {int(task.config.num_fewshot or 0) for task in loaded.tasks.values()}
    notes = list(loaded.notes)
    cut = sum(lm.truncated[task] for task in loaded.tasks)
    if cut:
        notes.append(f"{cut} requests were longer than the model's context: cut at their beginning")
    tasks = {
        task: {
            **stats.mean([_value(sample, benchmark.metric) for sample in some]).json(),
            "of": len(loaded.tasks[task].eval_docs),
            "version": loaded.tasks[task].VERSION,
        }
        for task, some in counted.items()
    }
    hashes = sorted(
        f"{task} {sample['doc_id']} {sample['prompt_hash']} {sample['target_hash']}"
        for task, some in counted.items()
        for sample in some
    )
    return {
        **_about(Entry(benchmark, limit)),
        "shots": min(shots) if len(shots) == 1 else sorted(shots),
        "filter": benchmark.filter,
        **estimate.json(),
        "of": sum(task["of"] for task in tasks.values()),
        "limit": limit,
        "chance": chance,
        "at_chance": chance is not None and estimate.low <= chance <= estimate.high,
        "truncated": cut,
        "notes": notes,
        "files": [dict(file) for file in loaded.files],
        "prompts": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "tasks": tasks,
    }


def _counted(loaded: Loaded, samples: Sequence[Sample]) -> list[Sample]:
    """The samples through the filter that counts, one a document."""
    return [sample for sample in samples if sample["filter"] == loaded.benchmark.filter]


def _value(sample: Sample, metric: str) -> float:
    return float(sample[metric])


def _text(sample: Sample) -> str:
    """What a document asks and answers, without the examples before it."""
    return " ".join(str(v) for v in _leaves(sample["doc"]))


def _leaves(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value] if isinstance(value, str) else []


def _mark_contaminated(
    rows: dict[str, dict[str, Any]],
    loaded: Mapping[str, Loaded],
    samples: Mapping[str, Sequence[Sample]],
    subject: Subject,
    settings: EvalSettings,
) -> None:
    texts = {
        task: [_text(sample) for sample in _counted(benchmark, samples[task])]
        for benchmark in loaded.values()
        for task in benchmark.tasks
    }
    with counting("contamination") as progress:
        report = contamination.contaminated(
            subject.path, texts, data=settings.data, progress=progress
        )
    for name, benchmark in loaded.items():
        found = {task: report.tasks[task] for task in benchmark.tasks if task in report.tasks}
        rows[name]["contamination"] = {
            "known": report.known,
            "why": report.why,
            "rule": ngrams.RULE,
            "documents": sum(len(overlap.contaminated) for overlap in found.values()),
            "judged": sum(o.documents - o.too_short for o in found.values()),
            "by_task": {task: o.contaminated for task, o in found.items() if o.contaminated},
        }


def _formats(
    lm: GemmuleLM,
    loaded: Mapping[str, Loaded],
    limits: Mapping[str, int | None],
    settings: EvalSettings,
) -> dict[str, Any]:
    found = {}
    for name, benchmark in loaded.items():
        scores = []
        for variant in prompt_formats.variants(benchmark.benchmark):
            tasks = load_tasks(variant.benchmark, settings.data_dir)
            samples = _ask(lm, {name: tasks}, limits, settings.chat)
            groups = [
                [_value(s, "acc") for s in _counted(tasks, samples[task])] for task in tasks.tasks
            ]
            scores.append({"format": variant.words, **stats.stratified(groups).json()})
        if scores:
            found[name] = {
                "title": benchmark.benchmark.title,
                **prompt_formats.spread(name, scores),
            }
    return found


def _write_samples(
    subject: Subject, loaded: Mapping[str, Loaded], samples: Mapping[str, Sequence[Sample]]
) -> None:
    with files.atomic_path(subject.folder / SAMPLES) as path, path.open("w") as out:
        for name, benchmark in loaded.items():
            for task in benchmark.tasks:
                for sample in _counted(benchmark, samples[task]):
                    line = {"benchmark": name, "task": task, **_kept(benchmark, sample)}
                    out.write(json.dumps(line, ensure_ascii=True, default=str) + "\n")


def _kept(loaded: Loaded, sample: Sample) -> dict[str, Any]:
    """A sample as it is written: the prompt once, what was answered, and what that is worth."""
    requests = sample["arguments"]
    kept = {
        "document": sample["doc_id"],
        "prompt": requests[0][0],
        "target": sample["target"],
        "score": _value(sample, loaded.benchmark.metric),
    }
    if loaded.benchmark.kind == "choice" and not isinstance(sample["resps"][0][0], str):
        if any(request[0] != requests[0][0] for request in requests):
            kept["prompt"] = [request[0] for request in requests]
        kept["choices"] = [request[1] for request in requests]
        kept["log_likelihoods"] = [response[0][0] for response in sample["resps"]]
    else:
        kept["answer"] = sample["resps"][0][0]
        kept["read_as"] = sample["filtered_resps"][0]
    return kept
