"""Two models on the same questions: differences with paired stats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import stats
from gemmule.errors import DataError

Scores = dict[str, dict[str, tuple[str, float]]]  # by benchmark and question: prompt, score


def read_scores(path: Path) -> Scores:
    """What each question of each benchmark was worth, from a samples file.

    Raises:
        DataError: naming file and line.
    """
    found: Scores = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise DataError(f"no samples at {path} ({e.strerror}): measure again") from None
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            key = f"{sample['task']} {sample['document']}"
            question = json.dumps([sample["prompt"], sample.get("choices"), sample["target"]])
            of_benchmark = found.setdefault(sample["benchmark"], {})
            of_benchmark[key] = (question, float(sample["score"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number}: no sample") from None
    return found


def differences(a: Scores, b: Scores) -> dict[str, dict[str, Any]]:
    """Of each benchmark that both have: a - b with its interval, over questions asked alike."""
    found = {}
    for name in a:
        both = [
            (score, b[name][key][1])
            for key, (question, score) in a[name].items()
            if key in b.get(name, {}) and b[name][key][0] == question
        ]
        if both:
            difference = _difference([x for x, _ in both], [y for _, y in both])
            found[name] = {**difference.json(), "verdict": _verdict(difference)}
    return found


def _difference(a: Sequence[float], b: Sequence[float]) -> stats.Estimate:
    if all(score in (0, 1) for score in (*a, *b)):
        return stats.paired_proportions([bool(x) for x in a], [bool(y) for y in b])
    return stats.paired(a, b)


def _verdict(difference: stats.Estimate) -> str:
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference seen"


def against(other: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """As it is kept in a result: whom it was compared with, and what came out."""
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
        "differences": dict(found),
    }
