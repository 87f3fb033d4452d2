"""Measures a model on safety benchmarks: questions, answers, verdicts, figures, result files."""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gemmule import files
from gemmule.config import Config
from gemmule.errors import DataError
from gemmule.evals.benchmarks.tasks import Loaded, Unavailable, load_tasks
from gemmule.evals.safety import asking, catalogue
from gemmule.evals.safety.benchmark import SafetyBenchmark
from gemmule.evals.safety.continuations import MAX_NEW_TOKENS
from gemmule.evals.safety.figure import Figure, Sample, Values, estimate
from gemmule.evals.safety.journal import SAMPLES, Journal, read_samples
from gemmule.evals.safety.verdict import NO_SCORER, Scorer
from gemmule.evals.subject import Subject

if TYPE_CHECKING:
    from lm_eval.api.model import LM

RESULT = "safety.json"
FORMAT = 1
Progress = Callable[[str, int, int], None]  # what, done, of how many


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
    def writing(self) -> asking.Writing:
        """How continuations are written."""
        return asking.Writing(self.temperature, self.seed, self.max_new_tokens)


def measure(
    subject: Subject,
    lm: "LM",
    settings: Settings,
    scorer: Scorer | None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measures, and writes safety.json and safety.samples.jsonl into the subject's folder.

    The same call goes on where a stopped one was: answers and verdicts are kept as they come.

    Args:
        subject: the model.
        lm: the same as lm-eval runs it.
        settings: what to measure.
        scorer: of continuations; None: figures of toxicity are missing.
        progress: called as questions are answered.

    Raises:
        UserError: for broken files, an unknown benchmark, a scorer that cannot read.
    """
    began = time.monotonic()
    wanted = catalogue.chosen(settings.tasks)
    with _quietly():
        loaded = {b.name: _load(b, settings, scorer) for b in wanted}
    journal = Journal(subject.folder, _answers_depend_on(subject))
    judged_by = scorer.describe() if scorer is not None else None
    found: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    keys: list[str] = []
    for benchmark in wanted:
        tasks = loaded[benchmark.name]
        if isinstance(tasks, str):
            figures |= {
                f.name: {**_about(f, benchmark), "missing": tasks} for f in benchmark.figures
            }
            continue
        with _quietly():
            asked, there = asking.questions(benchmark, tasks, settings.limit, settings.writing)
        _ask(benchmark, asked, lm, journal, progress)
        if benchmark.scored:
            assert scorer is not None
            assert judged_by is not None
            _judge(benchmark, asked, scorer, judged_by, journal, progress)
        samples = [journal.kept[question.key] for question in asked]
        keys += [question.key for question in asked]
        found[benchmark.name] = _benchmark(benchmark, tasks, samples, there, settings)
        figures |= {f.name: _figure(f, benchmark, samples) for f in benchmark.figures}
    result = {
        "format": FORMAT,
        "kind": "safety",
        "model": {**subject.identity, "name": subject.name},
        "settings": settings.model_dump(mode="json"),
        "lm_eval": metadata.version("lm_eval"),
        "scorer": judged_by,
        "report": {"source": catalogue.REPORT, "sizes": list(catalogue.SIZES)},
        "unit": "percent",
        "figures": figures,
        "benchmarks": found,
        "samples": SAMPLES,
        "seconds": time.monotonic() - began,
    }
    journal.finish(keys)
    files.write_json(subject.folder / RESULT, result)
    return result


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars that `datasets` draws whenever it maps a function."""
    try:
        import datasets
    except ImportError:  # without lm-eval, which load_tasks will say
        yield
        return
    drawn = datasets.is_progress_bar_enabled()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            datasets.enable_progress_bars()


def _answers_depend_on(subject: Subject) -> dict[str, Any]:
    names = ("weights", "tokenizer", "dtype", "quantize", "device")
    return {name: subject.identity.get(name) for name in names}


def _load(benchmark: SafetyBenchmark, settings: Settings, scorer: Scorer | None) -> Loaded | str:
    """The tasks, or why they cannot be had."""
    if benchmark.scored and scorer is None:
        return NO_SCORER
    if settings.data_dir is None and benchmark.local_only:
        return benchmark.local_only
    try:
        return load_tasks(benchmark.benchmark, settings.data_dir)
    except Unavailable as e:
        return f"not measured: {e}"


def _ask(
    benchmark: SafetyBenchmark,
    asked: Sequence[asking.Question],
    lm: "LM",
    journal: Journal,
    progress: Progress,
) -> None:
    left = [question for question in asked if question.key not in journal.kept]
    done = len(asked) - len(left)
    progress(benchmark.benchmark.title, done, len(asked))
    for samples in asking.ask(left, lm):
        journal.add(samples)
        done += len(samples)
        progress(benchmark.benchmark.title, done, len(asked))


_VERDICTS_AT_ONCE = 256


def _judge(
    benchmark: SafetyBenchmark,
    asked: Sequence[asking.Question],
    scorer: Scorer,
    judged_by: Mapping[str, Any],
    journal: Journal,
    progress: Progress,
) -> None:
    """Adds a verdict to each continuation; what is empty is not toxic, whatever a scorer says."""
    mark = _fingerprint(judged_by)
    samples = [journal.kept[question.key] for question in asked]
    left = [sample for sample in samples if sample.get("scorer") != mark]
    done = len(samples) - len(left)
    what = f"{benchmark.benchmark.title}: verdicts"
    for start in range(0, len(left), _VERDICTS_AT_ONCE):
        group = left[start : start + _VERDICTS_AT_ONCE]
        texts = [s for s in group if s["answer"].strip()]
        before = done + start
        verdicts = iter(
            scorer.score(
                [(s["prompt"], s["answer"]) for s in texts],
                functools.partial(_told, progress, what, before, len(samples)),
            )
        )
        judged = []
        for sample in group:
            verdict: dict[str, Any] = {"toxicity": 0.0, "harms": {}, "cut": False}
            if sample["answer"].strip():
                said = next(verdicts)
                verdict = {"toxicity": said.toxicity, "harms": said.harms, "cut": said.cut}
            judged.append({**sample, **verdict, "scorer": mark})
        journal.add(judged)
    progress(what, len(samples), len(samples))


def _told(progress: Progress, what: str, before: int, total: int, done: int) -> None:
    progress(what, before + done, total)


def _fingerprint(judged_by: Mapping[str, Any]) -> str:
    said = {k: v for k, v in judged_by.items() if k != "name"}
    return hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()[:16]


def _about(figure: Figure, benchmark: SafetyBenchmark) -> dict[str, Any]:
    return {
        "title": figure.title,
        "benchmark": benchmark.name,
        "better": figure.better,
        "chance": figure.chance,
        "report": dict(zip(catalogue.SIZES, figure.report, strict=True)) if figure.report else {},
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
        "notes": [*benchmark.notes, *tasks.notes],
        "files": [dict(file) for file in tasks.files],
    }
    if benchmark.scored:
        about["empty"] = sum(not s["answer"].strip() for s in samples)
        about["cut"] = sum(bool(s["cut"]) for s in samples)
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


def values_of(result_samples: Sequence[Sample], name: str) -> Values:
    """Each document's value of a figure."""
    for benchmark in catalogue.ALL:
        for figure in benchmark.figures:
            if figure.name == name:
                return figure.values(
                    [s for s in result_samples if s["benchmark"] == benchmark.name]
                )
    raise KeyError(name)
