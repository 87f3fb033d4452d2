"""What the seeds of bench/posttrain_warp.py say together: means, comparisons of fronts, a table.

Rewards are in standard deviations over the start's answers, counted from the start's mean. A place
is one measured model: square root of its KL to the start, gold reward, proxy reward.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemmule import stats
from gemmule.console import table

Seed = Mapping[str, Any]
Place = Mapping[str, float]
Scaled = Mapping[str, Sequence[Place]]
Differences = Callable[[Scaled], list[float]]


def summary(seeds: Sequence[Seed], proxy: int, ema_beta: float) -> dict[str, Any]:
    """Means over seeds, and comparisons.

    Args:
        seeds: figures of each seed, as the benchmark keeps them.
        proxy: number of pairs of the proxy that policies are trained on.
        ema_beta: beta of the runs with a moving anchor.
    """
    scaled = [in_standard_deviations(seed, proxy) for seed in seeds]
    return {
        "agreement": {
            pairs: _student([seed["best_of"]["proxies"][pairs]["agreement"] for seed in seeds])
            for pairs in seeds[0]["best_of"]["proxies"]
        },
        "places": {
            name: [_means([seed[name][i] for seed in scaled]) for i in range(len(places))]
            for name, places in scaled[0].items()
        },
        "by_seed": scaled,
        "angles": [
            {layer: _student([seed["angles"][i][layer] for seed in seeds]) for layer in angles}
            for i, angles in enumerate(seeds[0]["angles"])
        ],
        "comparisons": {
            name: compared([differences(seed) for seed in scaled])
            for name, differences in _comparisons(list(scaled[0]), ema_beta).items()
        },
    }


def in_standard_deviations(seed: Seed, proxy: int) -> Scaled:
    """All places of a seed by name, with rewards in standard deviations from the start's mean."""
    pool, start = seed["best_of"], seed["start"]
    gold_std = pool["std"] or 1.0  # an untrained model may have one reward for all answers

    def scaled(place: Place, zero: float, pairs: str) -> Place:
        own = pool["proxies"][pairs]
        return {
            "at": place["at"],
            "distance": math.sqrt(max(0.0, place["kl"])),
            "gold": (place["gold"] - zero) / gold_std,
            "proxy": (place["proxy"] - own["mean"]) / (own["std"] or 1.0),
            **{key: place[key] for key in ("words", "cut") if key in place},
        }

    result: dict[str, list[Place]] = {
        f"best of n, {pairs} pairs": [scaled(p, pool["mean"], pairs) for p in own["places"]]
        for pairs, own in pool["proxies"].items()
    }
    for name, places in {**seed["policies"], **seed["warp"]}.items():
        pairs = name.split()[-2] if name.endswith(" pairs") else str(proxy)
        result[name] = [scaled(place, start["gold"], pairs) for place in places]
    return result


def _comparisons(names: Sequence[str], ema_beta: float) -> dict[str, Differences]:
    """Differences in gold reward, by what is compared; each seed gives one or several."""
    few, *_, many = [name for name in names if name.startswith("best of n")]
    runs = [name for name in names if name.startswith("ema run") and "second" not in name]
    fixed = f"rloo {ema_beta:g}"
    return {
        f"largest n: {many} over {few}": _last(many, few),
        **{
            f"best place over the last one: {name}": functools.partial(_regret, name)
            for name in names
            if name.startswith(("best of n", "rloo", "jbond"))
        },
        f"same KL: moving anchor over fixed ({fixed})": above(runs[0], [fixed]),
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
    means = [sum(values) / len(values) for values in by_seed if values]
    signs = [d > 0 for values in by_seed for d in values if d != 0]
    n, above = len(signs), sum(signs)
    tail = sum(math.comb(n, i) for i in range(max(above, n - above), n + 1)) / 2**n
    return {
        **stats.student_mean(means), "by_seed": means, "above": above, "places": n,
        "p": min(1.0, 2 * tail),
    }  # fmt: skip


def _means(places: Sequence[Place]) -> dict[str, Any]:
    return {key: _student([place[key] for place in places]) for key in places[0]}


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
