"""Reading run and quickstart folders for the card: JSON, JSONL and TOML only.

Every file is checked here once, so that the rest of the report can trust what it holds.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import CheckpointError

RESULT_NEEDS = ("nats_per_token", "perplexity", "bits_per_byte", "parameters", "train_tokens")
RESULT_MAY_HAVE = ("heldout_tokens", "train_flops", "seconds", "energy_wh", "gco2e", "seed")


@dataclasses.dataclass(frozen=True)
class Document:
    """One parsed file, known by its path relative to the card's run.

    Attributes:
        file: as the card names it, "student/result.json".
        content: the parsed mapping.
    """

    file: str
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value under a dotted key, None when there is none; of a list by its place, from 0."""
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
        folder: path relative to the card's run, "" when it is the run itself.
        manifest: manifest.json.
        result: result.json.
        carbon: carbon.json, None when the run has none.
        config: config.toml, None when the run has none.
        evaluations: validation losses of metrics.jsonl, by tokens.
        training: training losses of metrics.jsonl, by tokens.
        benchmarks: evals/benchmarks.json, None when it was not measured.
        safety: evals/safety.json, None when it was not measured.
        memorization: evals/memorization.json, None when it was not measured.
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
    """

    teacher: Run
    scratch: Run
    student: Run
    scratch_equal_compute: Run | None
    comparison: Document
    samples: Sequence[Mapping[str, str]]


def load(folder: Path) -> Run | Quickstart:
    """Reads a run directory or a quickstart directory.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no run at {folder}: give the folder of a run or a quickstart")
    if (folder / "comparison.json").exists():
        return _load_quickstart(folder)
    if (folder / "manifest.json").exists():
        return load_run(folder, "")
    if (folder / "teacher").is_dir():
        raise CheckpointError(
            f"no comparison.json in {folder}: the quickstart has not finished; "
            "run it again to go on, or give one of its runs"
        )
    raise CheckpointError(
        f"{folder} is no run: it holds neither manifest.json (a training run) nor "
        "comparison.json (a quickstart)"
    )


def load_run(root: Path, folder: str) -> Run:
    """Reads one training run.

    Args:
        root: the folder the card is for.
        folder: the run's folder relative to root, "" for root itself.

    Raises:
        CheckpointError: naming the file that is missing or broken.
    """
    prefix = f"{folder}/" if folder else ""
    manifest = _document(root, f"{prefix}manifest.json")
    for key in ("model", "data"):
        if not isinstance(manifest.get(key), Mapping):
            raise CheckpointError(f"{root / manifest.file}: {key!r} is missing or not a group")
    if manifest.get("kind") not in ("train", "distill"):
        raise CheckpointError(
            f"{root / manifest.file}: kind is {manifest.get('kind')!r}; allowed: train, distill"
        )
    if not (root / prefix / "result.json").exists():
        raise CheckpointError(
            f"no result.json in {root / prefix}: the run has not finished; resume it first"
        )
    result = _document(root, f"{prefix}result.json")
    _check_result(root, result, "")
    evaluations, training = _metrics(root / prefix / "metrics.jsonl")
    return Run(
        folder=folder,
        manifest=manifest,
        result=result,
        carbon=_optional(root, f"{prefix}carbon.json"),
        config=_config(root, f"{prefix}config.toml"),
        evaluations=evaluations,
        training=training,
        benchmarks=_optional(root, f"{prefix}evals/benchmarks.json"),
        safety=_optional(root, f"{prefix}evals/safety.json"),
        memorization=_optional(root, f"{prefix}evals/memorization.json"),
    )


def _load_quickstart(root: Path) -> Quickstart:
    comparison = _document(root, "comparison.json")
    for group in ("equal_tokens", "equal_compute"):
        for model in ("scratch", "distilled"):
            _check_result(root, comparison, f"{group}.{model}")
    samples: list[Mapping[str, str]] = []
    if (root / "samples.json").exists():
        entries = _parse(root / "samples.json")
        texts = isinstance(entries, list) and all(
            isinstance(entry, Mapping) and all(isinstance(v, str) for v in entry.values())
            for entry in entries
        )
        if not texts:
            raise CheckpointError(f"{root / 'samples.json'}: not a list of groups of text")
        samples = entries
    has_more = (root / "scratch_equal_compute" / "manifest.json").exists()
    return Quickstart(
        teacher=load_run(root, "teacher"),
        scratch=load_run(root, "scratch"),
        student=load_run(root, "student"),
        scratch_equal_compute=load_run(root, "scratch_equal_compute") if has_more else None,
        comparison=comparison,
        samples=samples,
    )


def is_number(value: object) -> bool:
    """A finite int or float; True and False are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _check_result(root: Path, document: Document, group: str) -> None:
    prefix = f"{group}." if group else ""
    for key in RESULT_NEEDS + RESULT_MAY_HAVE:
        value = document.get(prefix + key)
        if not (is_number(value) or (value is None and key in RESULT_MAY_HAVE)):
            what = "missing" if value is None else f"{value!r}, not a finite number"
            raise CheckpointError(f"{root / document.file}: {prefix}{key} is {what}")


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}: the run is not complete") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable JSON: {e}") from None


def _document(root: Path, file: str) -> Document:
    content = _parse(root / file)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{root / file}: expected a JSON object")
    return Document(file, content)


def _optional(root: Path, file: str) -> Document | None:
    return _document(root, file) if (root / file).exists() else None


def _config(root: Path, file: str) -> Document | None:
    path = root / file
    if not path.exists():
        return None
    try:
        return Document(file, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable TOML: {e}") from None


def _metrics(path: Path) -> tuple[list[Point], list[Point]]:
    """Validation and training losses; of a step logged twice (a resumed run) the later counts."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise CheckpointError(
            f"no metrics.jsonl in {path.parent}: the run is not complete"
        ) from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable: {e}") from None
    evaluations: dict[float, Point] = {}
    training: dict[float, Point] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise CheckpointError(f"{path}, line {number}: not JSON") from None
        if not isinstance(entry, Mapping) or not is_number(entry.get("tokens")):
            raise CheckpointError(f"{path}, line {number}: no number of tokens")
        tokens = float(entry["tokens"])
        if entry.get("split") == "validation" and is_number(entry.get("nats_per_token")):
            evaluations[tokens] = Point(tokens, float(entry["nats_per_token"]))
        elif is_number(entry.get("loss")):
            training[tokens] = Point(tokens, float(entry["loss"]))
    return (
        [evaluations[tokens] for tokens in sorted(evaluations)],
        [training[tokens] for tokens in sorted(training)],
    )
