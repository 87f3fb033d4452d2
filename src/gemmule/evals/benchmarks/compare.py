"""Two models on the same questions: differences with paired intervals."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import stats
from gemmule.errors import DataError

Scores = dict[str, dict[str, tuple[str, float]]]  # by benchmark and document: question, score


def read_scores(path: Path) -> Scores:
    """Reads the score of every question of every benchmark from a samples file.

    Raises:
        DataError: naming file and line.
    """
    scores: Scores = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise DataError(f"no samples at {path} ({e.strerror}): evaluate again") from None
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            key = f"{sample['task']} {sample['document']}"
            question = json.dumps([sample["prompt"], sample.get("choices"), sample["target"]])
            of_benchmark = scores.setdefault(sample["benchmark"], {})
            of_benchmark[key] = (question, float(sample["score"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: not a sample") from None
    return scores


def differences(a: Scores, b: Scores) -> dict[str, dict[str, Any]]:
    """The difference a - b with its interval, for each benchmark that both have.

    Only questions with the same prompt, choices and target in both count.
    """
    result = {}
    for name in a:
        both = [
            (score, b[name][key][1])
            for key, (question, score) in a[name].items()
            if key in b.get(name, {}) and b[name][key][0] == question
        ]
        if both:
            difference = _difference([x for x, _ in both], [y for _, y in both])
            result[name] = {**difference.json(), "verdict": _verdict(difference)}
    return result


def _difference(a: Sequence[float], b: Sequence[float]) -> stats.Estimate:
    if all(score in (0, 1) for score in (*a, *b)):
        return stats.paired_proportions([bool(x) for x in a], [bool(y) for y in b])
    return stats.paired(a, b)


def _verdict(difference: stats.Estimate) -> str:
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference seen"


def against(other: Mapping[str, Any], differences: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a result about the model that it was compared with.

    Args:
        other: the other model's result.
        differences: the differences from it, by benchmark.
    """
    model = other["model"]
    return {
        "name": model["name"],
        "weights": model["weights"],
        "parameters": model["parameters"],
        "scores": {
            name: {key: row[key] for key in ("value", "low", "high", "n")}
            for name, row in other["rows"].items()
            if "value" in row
        },
        "differences": dict(differences),
    }
