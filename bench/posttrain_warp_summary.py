"""What the seeds of bench/posttrain_warp.py say together: means, comparisons of fronts, a table.

Rewards are in standard deviations over the start's answers, counted from the start's mean. A place
is one measured model: square root of its KL to the start, gold reward, proxy reward.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gemmule import stats
from gemmule.console import table

Seed = Mapping[str, Any]
Place = Mapping[str, float]
Scaled = Mapping[str, Sequence[Place]]
Differences = Callable[[Scaled], list[float]]


def summary(seeds: Sequence[Seed], ema_beta: float) -> dict[str, Any]:
    """Means over seeds, and comparisons; what a seed does not have yet is left out.

    Args:
        seeds: figures of each seed, as the benchmark makes them.
        ema_beta: beta of the runs with a moving anchor.
    """
    scaled = [in_standard_deviations(seed) for seed in seeds]
    names = list(dict.fromkeys(name for seed in scaled for name in seed))
    angles = [{n: v for n, v in seed.items() if n.startswith("angles")} for seed in seeds]
    return {
        "agreement": {
            name: _student([seed[name]["agreement"] for seed in seeds if name in seed])
            for name in names
            if name.startswith("best of n")
        },
        "places": {name: _means([seed[name] for seed in scaled if name in seed]) for name in names},
        "by_seed": scaled,
        "angles": {
            name: {
                layer: _student([own[name][layer] for own in angles if name in own])
                for layer in layers
            }
            for one in angles
            for name, layers in one.items()
        },
        "comparisons": {
            name: compared(by_seed)
            for name, differences in _comparisons(names, ema_beta).items()
            if (by_seed := list(_of_each(differences, scaled)))
        },
    }


def _of_each(differences: Differences, seeds: Sequence[Scaled]) -> Iterator[list[float]]:
    """The differences of each seed that has any."""
    for seed in seeds:
        with contextlib.suppress(KeyError):
            if values := differences(seed):
                yield values


def in_standard_deviations(seed: Seed) -> Scaled:
    """All places of a seed by name, with rewards in standard deviations from the start's mean."""

    def scaled(place: Place, zero: Place) -> Place:
        # An untrained model may have one reward for all answers.
        gold_std, proxy_std = zero["gold_std"] or 1.0, zero["proxy_std"] or 1.0
        return {
            "at": place["at"],
            "distance": math.sqrt(max(0.0, place["kl"])),
            "gold": (place["gold"] - zero["gold"]) / gold_std,
            "proxy": (place["proxy"] - zero["proxy"]) / proxy_std,
            **{key: place[key] for key in ("words", "cut") if key in place},
        }

    result: dict[str, list[Place]] = {}
    for name, figures in seed.items():
        if name.startswith("best of n"):  # on other prompts than the policies
            result[name] = [scaled(place, figures) for place in figures["places"]]
        elif isinstance(figures, list):
            result[name] = [scaled(place, seed["start"][0]) for place in figures]
    return result


def _comparisons(names: Sequence[str], ema_beta: float) -> dict[str, Differences]:
    """Differences in gold reward, by what is compared; each seed gives one or several."""
    best = [name for name in names if name.startswith("best of n")]
    runs = [name for name in names if name.startswith("ema run") and "second" not in name]
    fixed = f"rloo {ema_beta:g}"
    return {
        **{f"largest n: {name} over {best[0]}": _last(name, best[0]) for name in best[1:]},
        **{
            f"best place over the last one: {name}": functools.partial(_regret, name)
            for name in names
            if name.startswith(("best of n", "rloo", "jbond"))
        },
        f"same KL: moving anchor over fixed ({fixed})": above("ema run 1", [fixed]),
        "slerp over lerp": _last("slerp", "lerp"),
        "slerp over lerp, second": _last("slerp, second", "lerp, second"),
        "slerp over its runs": _last("slerp", *runs),
        "same KL: liti over its runs": above("slerp", runs),
        "slerp over the longer run": _last("slerp", "ema, longer"),
        "same KL: liti over the longer run": above("slerp", ["ema, longer"]),
        "second slerp over the first": _last("slerp, second", "slerp"),
        "same KL: second liti over the first": above("slerp, second", ["slerp"]),
    }


def _last(name: str, *others: str) -> Differences:
    """The last place of a way over the mean of the last places of others."""

    def differences(seed: Scaled) -> list[float]:
        rest = [seed[other][-1]["gold"] for other in others]
        return [seed[name][-1]["gold"] - sum(rest) / len(rest)]

    return differences


def above(name: str, curves: Sequence[str]) -> Differences:
    """The gold reward of the places of a way over each curve at the same KL.

    A curve begins at the start and is linear between its places; a place beyond its end is left
    out.
    """

    def differences(seed: Scaled) -> list[float]:
        values = []
        for curve in curves:
            ends = sorted((p["distance"], p["gold"]) for p in seed[curve])
            for (x, y), (next_x, next_y) in itertools.pairwise([(0.0, 0.0), *ends]):
                for place in seed[name]:
                    if x < place["distance"] <= next_x:
                        part = (place["distance"] - x) / (next_x - x)
                        values.append(place["gold"] - (y + part * (next_y - y)))
        return values

    return differences


def _regret(name: str, seed: Scaled) -> list[float]:
    """How far the last place is below the best one."""
    places = seed[name]
    return [max(place["gold"] for place in places) - places[-1]["gold"]]


def compared(by_seed: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The mean difference over seeds, and a sign test over all places.

    Returns:
        "mean" and "half_width" of Student's interval over the seeds' means, "by_seed", and how many
        of all differences are "above" 0 of "places", with the two-sided "p" of fair coins. Places
        of one seed are not independent, so p is a lower bound where a seed has several.
    """
    means = [sum(values) / len(values) for values in by_seed]
    signs = [d > 0 for values in by_seed for d in values if d != 0]
    n, above = len(signs), sum(signs)
    tail = sum(math.comb(n, i) for i in range(max(above, n - above), n + 1)) / 2**n
    return {
        **stats.student_mean(means), "by_seed": means, "above": above, "places": n,
        "p": min(1.0, 2 * tail),
    }  # fmt: skip


def _means(ways: Sequence[Sequence[Place]]) -> list[dict[str, Any]]:
    """The means over seeds of each place of a way."""
    return [
        {key: _student([place[key] for place in places]) for key in places[0]}
        for places in zip(*ways, strict=True)
    ]


def _student(values: Sequence[float | None]) -> dict[str, Any]:
    return stats.student_mean([value for value in values if value is not None])


def show(report: Mapping[str, Any]) -> None:
    """Prints the last place of each way, and the comparisons."""
    result = report["summary"]
    rows = []
    for name, places in result["places"].items():
        last = places[-1]
        shown = [_with_interval(last[key]) for key in ("distance", "gold", "proxy")]
        rows.append([name, *shown, *(_mean(last, key) for key in ("words", "cut"))])
    headers = ["", "sqrt(KL)", "gold", "proxy", "words", "cut"]
    table(headers, rows, title=f"last place of each way, means over {len(report['seeds'])} seeds")
    rows = [
        [name, _with_interval(row), f"{row['above']} of {row['places']}", f"{row['p']:.3f}"]
        for name, row in result["comparisons"].items()
    ]
    table(["gold reward", "difference", "above 0", "p"], rows)


def _mean(place: Mapping[str, Any], key: str) -> str:
    return f"{place[key]['mean']:.2f}" if key in place else ""


def _with_interval(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "none"
    half = "" if figure["half_width"] is None else f" ± {figure['half_width']:.2f}"
    return f"{figure['mean']:.2f}{half}"
