"""Size factor: how many times larger a model from scratch must be to reach a distilled one's loss.

Within a seed, models from scratch of several sizes give a curve of held-out loss over parameters.
It is made monotone by its running minimum (a larger model counts as no worse than a smaller one,
which favors training from scratch), and interpolated linearly over the logarithm of parameters. The
size at which it reaches the distilled model's loss, over the distilled model's size, is the factor.
Nothing is extrapolated: where the curve does not reach that loss, or starts below it, the factor is
a bound.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmule.ablate.sweep import Cell, Key, Ladder
from gemmule.stats import student_mean

Bound = Literal["more than", "at most"]
Shown = Sequence[tuple[Cell, Mapping[str, Any]]]  # cells and what is known of them
COUNTS = ("non_embedding_parameters", "parameters")


@dataclass(frozen=True)
class Factor:
    """A size over the distilled model's.

    Attributes:
        value: the factor, or its bound.
        bound: which bound `value` is; None if the factor was measured.
    """

    value: float
    bound: Bound | None = None


def factor(size: float, loss: float, curve: Sequence[tuple[float, float]]) -> Factor:
    """The size factor of one distilled model.

    Args:
        size: its parameters.
        loss: its held-out loss, nats per token.
        curve: parameters and losses of models from scratch, at least one.
    """
    parameters, losses = zip(*sorted(curve), strict=True)
    lowest = list(itertools.accumulate(losses, min))
    if lowest[0] <= loss:
        return Factor(parameters[0] / size, "at most")
    for i in range(1, len(lowest)):
        if lowest[i] <= loss:
            part = (lowest[i - 1] - loss) / (lowest[i - 1] - lowest[i])
            low, high = math.log(parameters[i - 1]), math.log(parameters[i])
            return Factor(math.exp(low + part * (high - low)) / size)
    return Factor(parameters[-1] / size, "more than")


def over_seeds(factors: Sequence[Factor]) -> dict[str, Any]:
    """Geometric mean of several seeds' factors with Student's interval of their logarithms.

    Where a seed has only a bound, so has the result: the one that holds for every seed.

    Returns:
        "value", "low" and "high" (None for a bound or a single seed), "bound" ("more than", "at
        most", "undetermined" if seeds have bounds of both kinds, None), "n", and "bounded", the
        number of seeds with a bound.
    """
    bounds = {f.bound for f in factors} - {None}
    values = [f.value for f in factors]
    result: dict[str, Any] = {
        "value": None, "low": None, "high": None, "bound": None, "n": len(factors),
        "bounded": sum(f.bound is not None for f in factors),
    }  # fmt: skip
    if not factors:
        return result
    if len(bounds) > 1:
        return {**result, "bound": "undetermined"}
    if bounds:
        above = bounds == {"more than"}
        return {**result, "value": min(values) if above else max(values), "bound": bounds.pop()}
    log = student_mean([math.log(value) for value in values])
    result["value"] = math.exp(log["mean"])
    if log["half_width"] is not None:
        result["low"] = math.exp(log["mean"] - log["half_width"])
        result["high"] = math.exp(log["mean"] + log["half_width"])
    return result


def size_factors(ladders: Sequence[Ladder], shown: Shown) -> list[dict[str, Any]]:
    """An entry of results.json for each ladder, of the seeds that have all of its models."""
    return [_entry(ladder, shown) for ladder in ladders]


def _entry(ladder: Ladder, shown: Shown) -> dict[str, Any]:
    student = _by_seed(ladder.student, shown)
    rungs = {key: _by_seed(key, shown) for key in ladder.rungs}
    seeds = [s for s in student if all(s in figures for figures in rungs.values())]
    sizes = {key: _parameters(key, shown) for key in (ladder.student, *ladder.rungs)}
    factors: dict[str, dict[int, Factor]] = {
        count: {
            seed: factor(
                sizes[ladder.student][count],
                student[seed],
                [(sizes[key][count], rungs[key][seed]) for key in ladder.rungs],
            )
            for seed in seeds
        }
        for count in COUNTS
    }
    entry = {
        "group": ladder.student[0],
        "arm": ladder.student[1],
        "basis": ladder.basis,
        **sizes[ladder.student],
        "nats_per_token": student_mean([student[seed] for seed in seeds]),
        "rungs": [
            {
                "group": key[0],
                "arm": key[1],
                **sizes[key],
                "nats_per_token": student_mean([rungs[key][seed] for seed in seeds]),
            }
            for key in ladder.rungs
        ],
        "factor": over_seeds(list(factors["non_embedding_parameters"].values())),
        "factor_of_all_parameters": over_seeds(list(factors["parameters"].values())),
        "by_seed": {
            str(seed): {"value": f.value, "bound": f.bound}
            for seed, f in factors["non_embedding_parameters"].items()
        },
    }
    return {**entry, "verdict": verdict(entry)}


def _by_seed(key: Key, shown: Shown) -> dict[int, float]:
    return {
        cell.seed: record["figures"]["nats_per_token"]
        for cell, record in shown
        if (cell.group, cell.arm) == key and record["status"] == "done"
    }


def _parameters(key: Key, shown: Shown) -> dict[str, Any]:
    """Both counts of parameters of a model; None for one that no seed has trained."""
    figures: Mapping[str, Any] = next(
        (r["figures"] for c, r in shown if (c.group, c.arm) == key and r["status"] == "done"), {}
    )
    return {count: figures.get(count) for count in COUNTS}


def verdict(entry: Mapping[str, Any]) -> str:
    """An entry in words."""
    result, n = entry["factor"], entry["factor"]["n"]
    who = f"{entry['group']} {entry['arm']}, {entry['basis']}"
    if n == 0:
        return f"{who}: no seed has all the models"
    whole = in_words(entry["factor_of_all_parameters"])
    counted = f"; counting the embedding, {whole}"
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    tried = _closest(entry)
    if result["bound"] == "undetermined":
        return f"{who}: undetermined, {seeds} lie on both sides of the models from scratch"
    if result["bound"] == "more than":
        reach = "no model from scratch reaches it" if result["bounded"] == n else (
            f"no model from scratch reaches it in {result['bounded']} of {seeds}"
        )  # fmt: skip
        return f"{who}: size factor {in_words(result)} ({reach}; the closest is {tried}{counted})"
    if result["bound"] == "at most":
        where = "" if result["bounded"] == n else f" in {result['bounded']} of {seeds}"
        return (
            f"{who}: size factor {in_words(result)} (the smallest model from scratch tried reaches "
            f"it{where}{counted})"
        )
    past = ""
    largest = entry["rungs"][-1]["non_embedding_parameters"] / entry["non_embedding_parameters"]
    if result["high"] is not None and result["high"] > largest:
        past = f"; the interval reaches past the largest model from scratch, {largest:.1f}"
    return f"{who}: size factor {in_words(result)}, {seeds}{counted}{past}"


def _closest(entry: Mapping[str, Any]) -> str:
    """The model from scratch with the lowest loss."""
    best = min(entry["rungs"], key=lambda rung: rung["nats_per_token"]["mean"])
    gap = best["nats_per_token"]["mean"] - entry["nats_per_token"]["mean"]
    return f"{best['group']} at {gap:+.3f} nats/token"


def in_words(result: Mapping[str, Any]) -> str:
    """A factor with its interval, or its bound."""
    if result["bound"] == "undetermined" or result["value"] is None:
        return "undetermined"
    if result["bound"]:
        return f"{result['bound']} {result['value']:.1f}"
    if result["low"] is None:
        return f"{result['value']:.1f}"
    return f"{result['value']:.1f} ({result['low']:.1f} to {result['high']:.1f})"
