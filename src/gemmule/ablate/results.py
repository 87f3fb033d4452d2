"""What cells say together: means, intervals, paired differences, verdicts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.ablate.ablations import REPORT, Ablation
from gemmule.ablate.config import SweepConfig
from gemmule.ablate.size_factor import size_factors
from gemmule.ablate.sweep import Cell, Key, SweepPlan
from gemmule.stats import CONFIDENCE, student_mean

# Key of a figure, whether more is better, what it is called, its unit.
METRICS = {
    "nats_per_token": (False, "held-out loss", "nats/token"),
    "induction": (True, "induction score", "nats/token"),
    "mean_source_nats": (False, "mean validation loss of the sources", "nats/token"),
}
SUMMED = (
    "nats_per_token", "perplexity", "bits_per_byte", "induction", "copied", "mean_source_nats",
)  # fmt: skip
CONSTANT = (
    "bytes_per_token",
    "parameters",
    "non_embedding_parameters",
    "train_tokens",
    "train_flops",
)


def combine(
    config: SweepConfig, ablation: Ablation, plan: SweepPlan, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The content of results.json.

    A record belongs to every cell of the plan, in its order: "name", "status" ("done", "failed" or
    "pending"), "reason" of a failed one, "figures" of a finished one.
    """
    shown = [(c, r) for c, r in zip(plan.cells, records, strict=True) if c.shown]
    rows = [_row(key, shown) for key in dict.fromkeys(_key(c) for c, _ in shown)]
    more_is_better, _, unit = METRICS[ablation.metric]
    sign = 1.0 if more_is_better else -1.0
    differences = []
    for key, baseline in plan.comparisons:
        gains = _gains(shown, key, baseline, ablation.metric, sign)
        gain = student_mean(list(gains.values()))
        differences.append(
            {
                "group": key[0],
                "arm": key[1],
                "baseline": list(baseline),
                "unit": unit,
                **gain,
                "by_seed": {str(seed): value for seed, value in gains.items()},
                "verdict": verdict(key[1], baseline[1], gain, unit),
            }
        )
    return {
        "ablation": config.ablation,
        "title": ablation.title,
        "report": {
            "table": ablation.table,
            "source": REPORT,
            "figures": [list(row) for row in ablation.report],
            "differs": ablation.differs,
        },
        "metric": ablation.metric,
        "axis": plan.axis,
        "confidence": CONFIDENCE,
        "settings": config.model_dump(mode="json"),
        "cells": [dict(record) for record in records],
        "summary": rows,
        "differences": differences,
        "chosen": chosen(rows) if ablation.metric == "mean_source_nats" else None,
        "trend": _trend(shown, plan, ablation.metric, sign, unit),
        "size_factors": size_factors(plan.ladders, shown),
        "failed": sum(r["status"] == "failed" for r in records),
        "pending": sum(r["status"] == "pending" for r in records),
    }


def _key(cell: Cell) -> Key:
    return cell.group, cell.arm


def _row(key: Key, shown: Sequence[tuple[Cell, Mapping[str, Any]]]) -> dict[str, Any]:
    mine = [(c, r) for c, r in shown if _key(c) == key]
    done = [r["figures"] for _, r in mine if r["status"] == "done"]
    row: dict[str, Any] = {
        "group": key[0],
        "arm": key[1],
        "x": mine[0][0].x,
        "seeds": len(mine),
        "done": len(done),
        "failed": sum(r["status"] == "failed" for _, r in mine),
    }
    for name in SUMMED:
        values = [figures[name] for figures in done if figures.get(name) is not None]
        if values:
            row[name] = {**student_mean(values), "values": values}
    sources = [figures["source_nats"] for figures in done if "source_nats" in figures]
    if sources:
        row["source_nats"] = {
            name: student_mean([losses[name] for losses in sources]) for name in sources[0]
        }
    for name in CONSTANT:
        row[name] = done[0].get(name) if done else None
    seconds = [figures["seconds"] for figures in done if figures.get("seconds") is not None]
    row["seconds"] = math.fsum(seconds) / len(seconds) if seconds else None
    return row


def _gains(
    shown: Sequence[tuple[Cell, Mapping[str, Any]]],
    key: Key,
    baseline: Key,
    metric: str,
    sign: float,
) -> dict[int, float]:
    """By seed, how much better `key` is than `baseline`, of the seeds that have both."""
    values: dict[Key, dict[int, float]] = {key: {}, baseline: {}}
    for cell, record in shown:
        if record["status"] == "done" and _key(cell) in values:
            values[_key(cell)][cell.seed] = record["figures"][metric]
    ours, theirs = values[key], values[baseline]
    return {seed: sign * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs}


def chosen(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The weights with the lowest mean validation loss of the sources.

    None before all runs are done: means over other seeds could not be compared. Validation text
    chooses, so that held-out losses are those of text that nothing was chosen by.
    """
    if any(row["done"] < row["seeds"] for row in rows):
        return None
    order = sorted(rows, key=lambda row: float(row["mean_source_nats"]["mean"]))
    best = order[0]
    loss = f"{best['mean_source_nats']['mean']:.4f} nats/token"
    behind = ""
    if len(order) > 1:
        gap = order[1]["mean_source_nats"]["mean"] - best["mean_source_nats"]["mean"]
        behind = f"; next is {order[1]['arm']}, {gap:.4f} behind"
    verdict = f"chosen: {best['arm']}, mean validation loss of the sources {loss}{behind}"
    return {"arm": best["arm"], "verdict": verdict}


def verdict(arm: str, baseline: str, gain: Mapping[str, Any], unit: str) -> str:
    """States whether `arm` is better than `baseline`, from the Student mean of paired gains."""
    mean, half, n = gain["mean"], gain["half_width"], gain["n"]
    if mean is None:
        return f"{arm} against {baseline}: no seed has both"
    direction = "ahead of" if mean > 0 else "behind"
    if half is None:
        return f"{arm} {direction} {baseline} by {abs(mean):.3f} {unit} (one seed: no interval)"
    if abs(mean) <= half:
        return (
            f"{arm} against {baseline}: no difference seen ({mean:+.3f} ± {half:.3f} {unit}, "
            f"{n} seeds)"
        )
    return f"{arm} {direction} {baseline} by {abs(mean):.3f} ± {half:.3f} {unit} ({n} seeds)"


def _trend(
    shown: Sequence[tuple[Cell, Mapping[str, Any]]],
    plan: SweepPlan,
    metric: str,
    sign: float,
    unit: str,
) -> dict[str, Any] | None:
    """How the gain at the largest group differs from that at the smallest, by seed."""
    groups = [(key, base) for key, base in plan.comparisons if key[0] and key[0] == base[0]]
    if len(groups) < 2:
        return None
    small = _gains(shown, *groups[0], metric, sign)
    large = _gains(shown, *groups[-1], metric, sign)
    change = student_mean([large[seed] - small[seed] for seed in small if seed in large])
    names = groups[0][0][0], groups[-1][0][0]
    return {
        "from": names[0],
        "to": names[1],
        "unit": unit,
        **change,
        "verdict": _trend_in_words(names, change, unit),
    }


def _trend_in_words(names: tuple[str, str], change: Mapping[str, Any], unit: str) -> str:
    small, large = names
    mean, half, n = change["mean"], change["half_width"], change["n"]
    if mean is None:
        return f"the gap at {large} against that at {small}: no seed has both"
    how = "wider" if mean > 0 else "narrower"
    if half is None:
        return f"the gap is {abs(mean):.3f} {unit} {how} at {large} than at {small} (one seed)"
    if abs(mean) <= half:
        return (
            f"the gap is as wide at {large} as at {small}, as far as can be seen "
            f"({mean:+.3f} ± {half:.3f} {unit}, {n} seeds)"
        )
    return (
        f"the gap is {abs(mean):.3f} ± {half:.3f} {unit} {how} at {large} than at {small} "
        f"({n} seeds)"
    )
