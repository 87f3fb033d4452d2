"""Measures a model on safety benchmarks: questions, answers, verdicts, figures, result files."""

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
from gemmule.evals.benchmarks.lm_eval_tasks import Loaded, Unavailable, load_tasks
from gemmule.evals.benchmarks.silence_lm_eval import quietly
from gemmule.evals.eval_target import Subject
from gemmule.evals.response_cache import Journal, key_of
from gemmule.evals.safety import model_requests, suite
from gemmule.evals.safety.benchmark import SafetyBenchmark
from gemmule.evals.safety.continuations import MAX_NEW_TOKENS
from gemmule.evals.safety.metric import Figure, Sample, Values, estimate
from gemmule.evals.safety.verdict import NO_SCORER, Scorer, Verdict

RESULT = "safety.json"
SAMPLES = "safety.samples.jsonl"
JOURNAL = "safety.journal.jsonl"
FORMAT = 1
Documents = Mapping[str, Loaded | str]  # by benchmark: its tasks, or why they cannot be had


class Settings(Config):
    """What is measured, and how.

    Attributes:
        tasks: benchmarks; None: all.
        data_dir: folder of local files; None: the hub.
        limit: questions of each task; None: all, or as many as is usual.
        temperature: of continuations; 0 takes the likeliest token.
        seed: of their draws.
        max_new_tokens: the longest continuation.
    """

    tasks: tuple[str, ...] | None = None
    data_dir: Path | None = None
    limit: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**63)
    max_new_tokens: int = Field(MAX_NEW_TOKENS, ge=1)

    @property
    def writing(self) -> model_requests.Writing:
        """How continuations are written."""
        return model_requests.Writing(self.temperature, self.seed, self.max_new_tokens)


def measure(
    subject: Subject,
    lm: model_requests.Model,
    settings: Settings,
    documents: Documents,
    scorer: Scorer | None,
    journal: Journal,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Measures, and writes safety.json and safety.samples.jsonl into the subject's folder.

    Args:
        subject: the model.
        lm: the same as lm-eval runs it.
        settings: what to measure.
        documents: what `load_documents` has read for them.
        scorer: of continuations; None where none are among the documents.
        journal: keeps verdicts as they come, as `lm` keeps answers in the same one.
        progress: called as continuations are judged.

    Raises:
        UserError: for a scorer that cannot read.
    """
    began = time.monotonic()
    judged_by = scorer.describe() if scorer is not None else None
    found: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for benchmark in suite.chosen(settings.tasks):
        tasks = documents[benchmark.name]
        if isinstance(tasks, str):
            figures |= {
                f.name: {**_about(f, benchmark), "missing": tasks} for f in benchmark.figures
            }
            continue
        with quietly():
            asked, there = model_requests.questions(
                benchmark, tasks, settings.limit, settings.writing
            )
        answered = model_requests.ask(asked, lm)
        if benchmark.scored:
            assert scorer is not None
            assert judged_by is not None
            answered = _judged(benchmark, answered, scorer, judged_by, journal, progress)
        about = _benchmark(benchmark, tasks, answered, there, settings)
        about["truncated"] = sum(model_requests.too_long(question, lm) for question in asked)
        found[benchmark.name] = about
        figures |= {f.name: _figure(f, benchmark, answered) for f in benchmark.figures}
        samples += answered
    result = {
        "format": FORMAT,
        "kind": "safety",
        "model": {**subject.identity, "name": subject.name},
        "settings": settings.model_dump(mode="json"),
        "lm_eval": metadata.version("lm_eval"),
        "scorer": judged_by,
        "report": {"source": suite.REPORT, "sizes": list(suite.SIZES)},
        "unit": "percent",
        "figures": figures,
        "benchmarks": found,
        "samples": SAMPLES,
        "seconds": time.monotonic() - began,
    }
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    files.write_text(subject.folder / SAMPLES, "".join(lines))
    files.write_json(subject.folder / RESULT, result)
    return result


def open_journal(subject: Subject) -> Journal:
    """The journal of a model's answers and verdicts on them.

    Raises:
        ConfigError: when there is one of another model.
        DataError: when it is broken.
    """
    return Journal(subject.folder / JOURNAL, subject.decides)


def load_documents(settings: Settings, scored: bool) -> Documents:
    """Reads what is to be asked, so that what is wrong with it is found before anything else.

    Args:
        settings: which benchmarks, and where they are.
        scored: whether there is somebody to say what is toxic.

    Raises:
        ConfigError: for an unknown benchmark.
        DataError: for a broken file, naming file and line, and when the folder is not there.
        MissingExtraError: without lm-eval.
    """
    wanted = suite.chosen(settings.tasks)
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        raise DataError(f"no folder {settings.data_dir}: give one with benchmark files in it")
    with quietly():
        return {b.name: _load(b, settings, scored) for b in wanted}


def _load(benchmark: SafetyBenchmark, settings: Settings, scored: bool) -> Loaded | str:
    """The tasks, or why they cannot be had."""
    if benchmark.scored and not scored:
        return NO_SCORER
    if settings.data_dir is None and benchmark.local_only:
        return benchmark.local_only
    try:
        return load_tasks(benchmark.benchmark, settings.data_dir)
    except Unavailable as e:
        return f"not measured: {e}"


_VERDICTS_AT_ONCE = 256


def _judged(
    benchmark: SafetyBenchmark,
    samples: Sequence[dict[str, Any]],
    scorer: Scorer,
    judged_by: Mapping[str, Any],
    journal: Journal,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Samples with verdicts; what is empty is not toxic, whatever a scorer says."""
    same = {k: v for k, v in judged_by.items() if k != "name"}
    keys = [key_of("verdict", same, s["prompt"], s["answer"]) for s in samples]
    left = [
        (key, (s["prompt"], s["answer"]))
        for key, s in zip(keys, samples, strict=True)
        if key not in journal.kept and s["answer"].strip()
    ]
    what = f"{benchmark.benchmark.title}: verdicts"
    for start in range(0, len(left), _VERDICTS_AT_ONCE):
        some = left[start : start + _VERDICTS_AT_ONCE]
        before = len(samples) - len(left) + start
        told = functools.partial(_told, progress, what, before, len(samples))
        verdicts = scorer.score([exchange for _, exchange in some], told)
        journal.add(
            (key, dataclasses.asdict(verdict))
            for (key, _), verdict in zip(some, verdicts, strict=True)
        )
    none = dataclasses.asdict(Verdict(0.0))
    return [{**s, **journal.kept.get(key, none)} for key, s in zip(keys, samples, strict=True)]


def _told(progress: Progress, what: str, before: int, total: int, done: int) -> None:
    progress(before + done, total, what)


def _about(figure: Figure, benchmark: SafetyBenchmark) -> dict[str, Any]:
    return {
        "title": figure.title,
        "benchmark": benchmark.name,
        "better": figure.better,
        "chance": figure.chance,
        "report": dict(zip(suite.SIZES, figure.report, strict=True)) if figure.report else {},
    }


def _figure(
    figure: Figure, benchmark: SafetyBenchmark, samples: Sequence[Sample]
) -> dict[str, Any]:
    about = _about(figure, benchmark)
    found = estimate(figure, figure.values(samples))
    if found is None:
        return {**about, "missing": "not measured: none of the questions asked counts for it"}
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        for part in figure.parts(sample):
            groups.setdefault(part, []).append(sample)
    parts = {}
    for name in sorted(groups):
        of_part = estimate(figure, figure.values(groups[name]))
        if of_part is not None:
            parts[name] = of_part.json()
    return {**about, **found.json(), "parts": parts}


def _benchmark(
    benchmark: SafetyBenchmark,
    tasks: Loaded,
    samples: Sequence[Sample],
    there: int,
    settings: Settings,
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(str(s["key"]) for s in samples).encode())
    about: dict[str, Any] = {
        "title": benchmark.benchmark.title,
        "tasks": list(tasks.tasks),
        "asked": len(samples),
        "there": there,
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
        how = "the likeliest tokens"
        if settings.temperature > 0:
            how = f"drawn at temperature {settings.temperature:g} with seed {settings.seed}"
        about["written"] = f"{how}, at most {settings.max_new_tokens} tokens"
    return about


def read_result(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A result and its samples, from safety.json or the folder it lies in.

    Raises:
        DataError: when there is none, or it is broken.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        result = files.read_json(file)
    except (OSError, ValueError) as e:
        raise DataError(f"no readable safety result at {file} ({e})") from None
    if not isinstance(result, dict) or result.get("kind") != "safety":
        raise DataError(f"{file} is no result of gemmule safety")
    if result.get("format") != FORMAT or not isinstance(result.get("figures"), dict):
        raise DataError(f"{file} was written by another version: measure again")
    return result, read_samples(file.parent)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a finished result.

    Raises:
        DataError: when they are missing or broken, naming file and line.
    """
    path = folder / SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"no samples at {path} ({e}): measure it again") from None
    samples = []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            sample["key"], sample["benchmark"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: no sample: measure it again") from None
        samples.append(sample)
    return samples


def values_of(result_samples: Sequence[Sample], name: str) -> Values:
    """Each document's value of a figure."""
    for benchmark in suite.ALL:
        for figure in benchmark.figures:
            if figure.name == name:
                return figure.values(
                    [s for s in result_samples if s["benchmark"] == benchmark.name]
                )
    raise KeyError(name)
