"""Fits the classifier to examples of good and of bad documents."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic

from gemmule import stats
from gemmule.config import Config
from gemmule.console import Progress
from gemmule.data.corpus import digest_of
from gemmule.data.quality.bands import PROBABILITY_EDGES, Bands
from gemmule.data.quality.classifier import Classifier
from gemmule.data.quality.features import GRAMS, Features, features, joined
from gemmule.data.quality.logistic import regression
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import Document, find_source
from gemmule.errors import DataError

REPORT = "report.json"
_LEAST = 20  # examples of each class
_AT_ONCE = 256


class FitConfig(Config):
    """What the classifier is fitted to, and how.

    Attributes:
        good: file, folder or glob of good documents.
        bad: the same of bad ones.
        field: field or column of records that holds the text.
        bits: words and pairs of words are hashed to 2^bits buckets.
        regularization: how strongly weights are held near 0, for all training examples together.
        heldout: fraction of the examples that measures the classifier and is not fitted to.
        seed: another one holds out other examples.
    """

    good: Path
    bad: Path
    field: str | None = None
    bits: int = pydantic.Field(default=20, ge=10, le=26)
    regularization: float = pydantic.Field(default=0.01, gt=0)
    heldout: float = pydantic.Field(default=0.2, gt=0, lt=1)
    seed: int = pydantic.Field(default=0, ge=0)


@dataclasses.dataclass
class _Examples:
    """The examples of both classes.

    Attributes:
        parts: features of the documents, group by group.
        digests: digest of each document.
        good: whether it is good.
        heldout: whether it is held out.
        shown: the held-out documents by digest.
    """

    parts: list[Features] = dataclasses.field(default_factory=list)
    digests: list[bytes] = dataclasses.field(default_factory=list)
    good: list[bool] = dataclasses.field(default_factory=list)
    heldout: list[bool] = dataclasses.field(default_factory=list)
    shown: dict[bytes, Document] = dataclasses.field(default_factory=dict)


def fit(config: FitConfig, progress: Progress | None = None) -> tuple[Classifier, dict[str, Any]]:
    """Fits a classifier.

    Args:
        config: examples and settings.
        progress: called as progress(done, 0, "documents") while examples are read.

    Returns:
        The classifier, and its report: what each limit would drop of the held-out examples.

    Raises:
        DataError: when there are too few examples, or examples that cannot be used.
    """
    examples = _Examples()
    for path, good in ((config.good, True), (config.bad, False)):
        _read(path, good, config, examples, progress)
    good_D, heldout_D = np.array(examples.good, bool), np.array(examples.heldout, bool)
    both = _in_both(examples)
    use_D = np.array([digest not in both for digest in examples.digests], bool)
    _check(good_D, heldout_D, use_D, config)
    whole = joined(examples.parts)
    train_D = use_D & ~heldout_D
    strength = config.regularization / int(train_D.sum())
    weights = regression(_chosen(whole, train_D), good_D[train_D], 2**config.bits, strength)
    held = np.flatnonzero(use_D & heldout_D)
    about: dict[str, Any] = {
        "settings": config.model_dump(mode="json"),
        "grams": list(GRAMS),
        "examples": {
            name: {
                "documents": int((use_D & (good_D == good)).sum()),
                "heldout": int((good_D[held] == good).sum()),
                "sha256": _sha256(examples, good),
            }
            for name, good in (("good", True), ("bad", False))
        },
        "in_both": len(both),
    }
    classifier = Classifier(weights.astype(np.float32), about)
    documents = [examples.shown[examples.digests[n]] for n in held]
    scores = classifier.probabilities([document.text for document in documents])
    report = _report(scores, good_D[held], documents)
    classifier.about = {**about, "auc": report["auc"]}
    return classifier, {**classifier.about, **report}


def _read(
    path: Path, good: bool, config: FitConfig, examples: _Examples, progress: Progress | None
) -> None:
    seen: set[bytes] = set()
    group: list[str] = []
    for document in _documents(path, config.field):
        digest = digest_of(document.text)
        if digest in seen or not document.text.strip():
            continue
        seen.add(digest)
        examples.digests.append(digest)
        examples.good.append(good)
        position = hashlib.sha256(config.seed.to_bytes(8) + digest).digest()
        examples.heldout.append(int.from_bytes(position[:8]) / 2**64 < config.heldout)
        if examples.heldout[-1]:
            examples.shown[digest] = document
        group.append(document.text)
        if len(group) == _AT_ONCE:
            examples.parts.append(features(group, config.bits))
            group = []
            if progress:
                progress(len(examples.digests), 0, "documents")
    if group:
        examples.parts.append(features(group, config.bits))


def _documents(path: Path, field: str | None) -> Iterator[Document]:
    """The documents of a source; those of a single text file are its sections."""
    source = find_source(path, field)
    return source.documents(ReadLog(), in_sections=source.is_one_text)


def _in_both(examples: _Examples) -> set[bytes]:
    """Documents that are examples of both: they say nothing."""
    good = {d for d, is_good in zip(examples.digests, examples.good, strict=True) if is_good}
    bad = {d for d, is_good in zip(examples.digests, examples.good, strict=True) if not is_good}
    return good & bad


def _check(
    good_D: npt.NDArray[np.bool_],
    heldout_D: npt.NDArray[np.bool_],
    use_D: npt.NDArray[np.bool_],
    config: FitConfig,
) -> None:
    for path, which in ((config.good, good_D), (config.bad, ~good_D)):
        count = int((use_D & which).sum())
        held = int((use_D & which & heldout_D).sum())
        if count < _LEAST or not 0 < held < count:
            raise DataError(
                f"{path} holds {count} different documents, {held} of them held out: give at least "
                f"{_LEAST} examples, none of them in the other file"
            )


def _chosen(whole: Features, mask_D: npt.NDArray[np.bool_]) -> Features:
    counts_D = whole.counts_D[mask_D]
    buckets_K = whole.buckets_K[np.repeat(mask_D, whole.counts_D)]
    return Features(buckets_K, np.cumsum(counts_D) - counts_D, counts_D)


def _sha256(examples: _Examples, good: bool) -> str:
    """Of the digests of a class's documents, in the order of the digests."""
    own = [d for d, is_good in zip(examples.digests, examples.good, strict=True) if is_good == good]
    return hashlib.sha256(b"".join(sorted(own))).hexdigest()


def _report(
    scores: list[float], good_D: npt.NDArray[np.bool_], documents: list[Document]
) -> dict[str, Any]:
    """How well held-out examples are told apart, and what each limit would drop of them."""
    bands = Bands(PROBABILITY_EDGES)
    for score, good, document in zip(scores, good_D.tolist(), documents, strict=True):
        bands.add(score, document, "(good)" if good else "(bad)")
    values = np.array(scores)
    limits = [
        {
            "limit": limit,
            **{
                f"{name}_dropped": stats.proportion(int((values[of] < limit).sum()), int(of.sum()))
                .json()
                for name, of in (("good", good_D), ("bad", ~good_D))
            },
        }
        for limit in PROBABILITY_EDGES
    ]  # fmt: skip
    return {"auc": auc(values[good_D], values[~good_D]), "limits": limits, "bands": bands.json()}


def auc(good: npt.NDArray[np.float64], bad: npt.NDArray[np.float64]) -> dict[str, float]:
    """The probability that a good document has a higher score than a bad one.

    Returns:
        "value", and "low" and "high" of its 95% interval (Hanley and McNeil, Radiology 143, 1982).
    """
    ordered = np.sort(bad)
    lower = np.searchsorted(ordered, good, "left")
    not_higher = np.searchsorted(ordered, good, "right")
    a = float((lower + not_higher).mean()) / 2 / len(bad)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (len(good) - 1) * (q1 - a * a) + (len(bad) - 1) * (q2 - a * a)
    half = 1.96 * math.sqrt(max(0.0, variance) / (len(good) * len(bad)))
    return {"value": a, "low": max(0.0, a - half), "high": min(1.0, a + half)}
