"""Reading run and quickstart folders for the card: JSON, JSONL and TOML only.

Every file is checked here once by its schema (runs/schema.py), so that the rest of the report can
trust its content.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runs import metrics, schema
from gemmule.runs.carbon import Energy
from gemmule.runs.layout import ChatLayout, QuickstartLayout, RunLayout
from gemmule.runs.schema import Comparison, Manifest, MetricsLine, Result, RunFile, RunResult
from gemmule.runs.schema_evals import (
    Answers,
    Benchmarks,
    Gates,
    Memorization,
    Safety,
    SizeFactors,
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One parsed file.

    Attributes:
        file: path relative to the card's run, such as "student/result.json".
        content: the parsed mapping.
    """

    file: str
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value under a dotted key; a list's entries count from 0. None when there is none."""
        value: Any = self.content
        for part in key.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                return None
        return value


@dataclasses.dataclass(frozen=True)
class Point:
    """Loss, nats per token, after some number of training tokens."""

    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        folder: path relative to the card's run; "" for the run itself.
        manifest: manifest.json.
        result: result.json.
        carbon: carbon.json, None when the run has none.
        config: config.toml, None when the run has none.
        evaluations: validation losses of metrics.jsonl, by tokens.
        training: training losses of metrics.jsonl, by tokens.
        benchmarks: evals/benchmarks.json, None when it was not measured.
        safety: evals/safety.json, None when it was not measured.
        memorization: evals/memorization.json, None when it was not measured.
        gates: evals/gates.json, None without gates.
        answers: answers.json of the chat stages of a quickstart; None where the run is none of
            them, or they have not come so far.
        size_factor: evals/size_factor.json, None when it was not measured.
    """

    folder: str
    manifest: Document
    result: Document
    carbon: Document | None
    config: Document | None
    evaluations: Sequence[Point]
    training: Sequence[Point]
    benchmarks: Document | None = None
    safety: Document | None = None
    memorization: Document | None = None
    gates: Document | None = None
    answers: Document | None = None
    size_factor: Document | None = None

    @property
    def has_loss(self) -> bool:
        """Whether the loss on held-out text is among its results, as of a language model."""
        return self.result.get("nats_per_token") is not None

    @property
    def distilled(self) -> bool:
        """Whether a teacher was used."""
        return bool(self.manifest.get("kind") == "distill")

    @property
    def flops_per_token(self) -> float | None:
        """Training compute per training token, None when the run did not count it."""
        flops, tokens = self.result.get("train_flops"), self.result.get("train_tokens")
        return float(flops) / float(tokens) if flops and tokens else None


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """A finished quickstart: four runs, their comparison and samples.

    Attributes:
        scratch_equal_compute: None when the folder is not there.
        comparison: comparison.json.
        samples: entries of samples.json, text by "prompt", "scratch", "distilled", "teacher";
            empty when there is none.
        scarce: the runs on little text whose folders are there.
        size_sweep: results.json of `gemmule ablate size` in the folder ablate-size; None when there
            is none.
    """

    teacher: Run
    scratch: Run
    student: Run
    scratch_equal_compute: Run | None
    comparison: Document
    samples: Sequence[Mapping[str, str]]
    scarce: Sequence[Run] = ()
    size_sweep: Document | None = None


def load(folder: Path) -> Run | Quickstart:
    """Reads a run directory or a quickstart directory.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no run at {folder}: give the folder of a run or a quickstart")
    quickstart = QuickstartLayout(folder)
    if quickstart.comparison.exists():
        return _load_quickstart(quickstart)
    if RunLayout(folder).manifest.exists():
        return dataclasses.replace(load_run(folder, ""), answers=_answers(folder))
    if quickstart.run("teacher").path.is_dir():
        raise CheckpointError(
            f"no {quickstart.comparison.name} in {folder}: the quickstart has not finished; "
            "continue it with --resume, or give one of its runs"
        )
    raise CheckpointError(
        f"{folder} is not a run: it holds neither {RunLayout(folder).manifest.name} (a training "
        f"run) nor {quickstart.comparison.name} (a quickstart)"
    )


def load_run(root: Path, folder: str) -> Run:
    """Reads one training run.

    Args:
        root: the folder the card is for.
        folder: the run's folder relative to root; "" for root itself.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    run = RunLayout(root / folder)
    manifest = _document(root, run.manifest, Manifest)
    if not run.finished:
        raise CheckpointError(
            f"no {run.result.name} in {run.path}: the run has not finished; resume it first"
        )
    result = _result(root, run)
    # The loss of other kinds is another quantity, and is not drawn.
    has_loss = result.get("nats_per_token") is not None
    evaluations, training = _losses(run.metrics) if has_loss else ([], [])
    return Run(
        folder=folder,
        manifest=manifest,
        result=result,
        carbon=_optional(root, run.carbon, Energy),
        config=_config(root, run.config),
        evaluations=evaluations,
        training=training,
        benchmarks=_optional(root, run.benchmarks, Benchmarks),
        safety=_optional(root, run.safety, Safety),
        memorization=_optional(root, run.memorization, Memorization),
        gates=_optional(root, run.gates, Gates),
        size_factor=_optional(root, run.size_factor, SizeFactors),
    )


def _answers(run: Path) -> Document | None:
    """Questions and answers of the chat stages that a run is one of."""
    chat = ChatLayout.around(run)
    if chat is None or not chat.answers.is_file():
        return None
    answers = Answers.read(chat.answers)
    if run.resolve().name not in answers.models:
        return None
    return Document(f"../{chat.answers.name}", answers.to_json())


def _load_quickstart(layout: QuickstartLayout) -> Quickstart:
    root = layout.path
    comparison = _document(root, layout.comparison, Comparison)
    samples: list[Mapping[str, str]] = []
    if layout.samples.exists():
        entries = schema.read_json(layout.samples)
        texts = isinstance(entries, list) and all(
            isinstance(entry, Mapping) and all(isinstance(v, str) for v in entry.values())
            for entry in entries
        )
        if not texts:
            raise CheckpointError(f"{layout.samples}: not a list of groups of text")
        samples = entries
    has_longer = layout.run("scratch_equal_compute").started
    return Quickstart(
        teacher=load_run(root, "teacher"),
        scratch=load_run(root, "scratch"),
        student=load_run(root, "student"),
        scratch_equal_compute=load_run(root, "scratch_equal_compute") if has_longer else None,
        comparison=comparison,
        samples=samples,
        scarce=_scarce(layout, comparison),
        size_sweep=_optional(root, layout.size_sweep, SizeFactors),
    )


def _scarce(layout: QuickstartLayout, comparison: Document) -> list[Run]:
    tried = comparison.get("scarce_text.tried") or {}
    root = layout.scarce_text
    names = [f"{way}-{run['schedule_epochs']}" for way, runs in tried.items() for run in runs]
    return [
        load_run(layout.path, (root / name).relative_to(layout.path).as_posix())
        for name in names
        if RunLayout(root / name).started
    ]


def is_number(value: object) -> bool:
    """Whether a value is a finite int or float; True and False are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _result(root: Path, run: RunLayout) -> Document:
    """result.json, of a language model or of a kind with other metrics."""
    other = run.manifest.is_file() and Manifest.read(run.manifest).kind not in ("train", "distill")
    result = _document(root, run.result, RunResult) if other else None
    if result is not None and result.get("nats_per_token") is None:
        return result
    return _document(root, run.result, Result)


def _document(root: Path, path: Path, kind: type[RunFile]) -> Document:
    content = kind.read(path).to_json()
    return Document(path.relative_to(root).as_posix(), content)


def _optional(root: Path, path: Path, kind: type[RunFile]) -> Document | None:
    return _document(root, path, kind) if path.exists() else None


def _config(root: Path, path: Path) -> Document | None:
    if not path.exists():
        return None
    try:
        content = files.read_toml(path)
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable TOML: {e}") from None
    return Document(path.relative_to(root).as_posix(), content)


def _losses(path: Path) -> tuple[list[Point], list[Point]]:
    """Validation and training losses; of a step logged twice (a resumed run) the later counts."""
    evaluations: dict[float, Point] = {}
    training: dict[float, Point] = {}
    for number, value in enumerate(metrics.read(path), 1):
        line = MetricsLine.parse(value, f"{path}, line {number}")
        tokens = float(line.tokens)
        if line.split == "validation":
            curve, loss = evaluations, line.number("nats_per_token")
        else:
            curve, loss = training, line.number("loss")
        if loss is not None:
            curve[tokens] = Point(tokens, loss)
    return (
        [evaluations[tokens] for tokens in sorted(evaluations)],
        [training[tokens] for tokens in sorted(training)],
    )
