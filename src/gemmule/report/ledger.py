"""The card's section on cost: every figure with the lines of the ledger that it comes from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.report import values
from gemmule.report.ledger_plot import card_plot
from gemmule.report.plots import Plot
from gemmule.report.run_files import Document
from gemmule.report.values import Provenance, Sentence, Value, sentence
from gemmule.runs.layout import LEDGER
from gemmule.runs.ledger import summary
from gemmule.runs.ledger.known import within
from gemmule.runs.ledger.line import Interval, Line
from gemmule.runs.ledger.walk import Cost, Figures, cost_at

_SHOWN = 8  # characters of a line's identifier
_FEW = 3  # lines that are named one by one


@dataclasses.dataclass(frozen=True)
class CostTable:
    """The cost of a model, stage by stage.

    Attributes:
        rows: name, kind, share, and energy, its interval, carbon, embodied carbon, time.
        sums: the same of sums.
        scores: labels and values of scores and totals.
        notes: what a reader has to know.
        picture: the plot.
    """

    rows: Sequence[tuple[str, str, str, Sequence[Value]]]
    sums: Sequence[tuple[str, str, str, Sequence[Value]]]
    scores: Sequence[tuple[str, Sentence]]
    notes: Sequence[str]
    picture: Plot


def section(root: Path, provenance: Provenance) -> tuple[CostTable, Cost] | None:
    """The section of a run or quickstart; None when it has no ledger.

    Only ledgers in the folder are read: a model's has copies of the lines of what it came from.

    Raises:
        CheckpointError: when a ledger is broken.
        MissingExtraError: when matplotlib is not installed.
    """
    cost = cost_at(root, within(root))
    if cost is None:
        return None
    document = Document(LEDGER, {})
    rows = []
    for stage in cost.stages:
        name = stage.account.name or stage.account.run
        share = "" if stage.share == 1 else f", times {stage.share:.4g}"
        shown = "" if stage.share == 1 else f"{stage.share:.0%}"
        rule = f"{_named(stage.lines)}{share}"
        cells = _cells(stage.attributed, f"cost of {name}", rule, document, provenance)
        rows.append((name, stage.account.kind, shown, cells))
    everything = f"{len(cost.stages)} stages by their shares"
    sums = [("made, in all", cost.making, everything)]
    if any(stage.share < 1 for stage in cost.stages):
        sums.append(("upper bound: teachers whole", cost.upper_bound, "all stages, whole"))
    if any(stage.without_teacher != stage.share for stage in cost.stages):
        without = "stages without teachers and recordings"
        sums.append(("if teachers were there anyway", cost.without_teacher, without))
    for what, figures, lines in (
        ("evaluated", cost.evaluating, cost.subject.evaluating),
        ("used", cost.using, cost.subject.using),
    ):
        if lines:
            sums.append((what, figures, _named(lines)))
    if cost.others:
        lines = [line for account in cost.others for line in account.lines]
        sums.append(("other attempts and models here", cost.other_cost, _named(lines)))
    table = CostTable(
        rows=rows,
        sums=[
            (name, "", "", _cells(each, f"cost: {name}", rule, document, provenance))
            for name, each, rule in sums
        ],
        scores=_scores(cost, everything, document, provenance),
        notes=summary.notes(cost),
        picture=card_plot(cost),
    )
    return table, cost


def emissions(cost: Cost) -> dict[str, Any] | None:
    """`co2_eq_emissions` of the hub: grams of the final run, and the rest in words."""
    final, rest = cost.stages[-1], cost.stages[:-1]
    grams = final.attributed.gco2e
    if grams is None:
        return None
    line = final.account.making[-1]
    methods = sorted(
        {part.method for each in final.account.making for part in each.joules.values()}
    )
    known = {"counter": "measured by counters", "model": "modelled from load"}
    more = sum(stage.attributed.total_gco2e or 0.0 for stage in rest)
    names = ", ".join(stage.account.name for stage in rest if stage.account.name)
    source = (
        f"gemmule's ledger; energy {' and '.join(known[m] for m in methods)}; grid: "
        f"{line.grid.source}; grams of the final run's electricity alone, its hardware adds "
        f"{final.attributed.embodied_gco2e:.3g} g"
    )
    if rest:
        source += f"; what it was made from ({names}) adds {more:.3g} g by its share"
    tuned = line.kind not in ("train", "distill")
    devices = line.devices
    return {
        "emissions": round(grams.best, 4),
        "source": source,
        "training_type": "fine-tuning" if tuned else "pre-training",
        "geographical_location": line.grid.country or "not given",
        "hardware_used": f"{devices.processor}, {devices.cores} cores"
        + (f", {devices.gpus} GPUs" if devices.gpus else ""),
    }


def _cells(
    each: Figures, label: str, rule: str, document: Document, provenance: Provenance
) -> list[Value]:
    def value(key: str, result: Any, form: values.Format) -> Value:
        return provenance.derived(document, f"{key} of {rule}", result, f"{label}, {key}", form)

    energy, grams = each.energy_wh, each.gco2e
    return [
        value("energy_wh.best", None if energy is None else energy.best, values.watt_hours),
        value("energy_wh.low to high", _ends(energy), _range_wh),
        value("gco2e.best", None if grams is None else grams.best, values.grams),
        value("embodied.gco2e", each.embodied_gco2e, values.grams),
        value("seconds", each.seconds, values.duration),
    ]


def _scores(
    cost: Cost, everything: str, document: Document, provenance: Provenance
) -> list[tuple[str, Sentence]]:
    scores = summary.sci(cost)
    provider, consumer = scores["provider"], scores["consumer"]
    made, used = f"(gco2e + embodied) of {everything}", _named(cost.subject.generating)
    rows: list[tuple[str, Sentence]] = []
    for label, rule, result, form in (
        (
            "SCI, provider: g CO₂e per million training tokens",
            f"{made} / tokens_in",
            provider["gco2e_per_million_training_tokens"],
            values.significant,
        ),
        (
            "SCI, provider: g CO₂e per 10^15 operations",
            f"{made} / flop",
            provider["gco2e_per_pflop"],
            values.significant,
        ),
        (
            "SCI, provider: g CO₂e per million parameters",
            f"{made} / parameters",
            provider["gco2e_per_million_parameters"],
            values.significant,
        ),
        (
            "SCI, consumer: g CO₂e per thousand generated tokens",
            f"(gco2e + embodied) / tokens_out of {used}",
            consumer["gco2e_per_thousand_generated_tokens"],
            values.significant,
        ),
        (
            "carbon by contracts (market-based)",
            f"market_gco2e of {everything}",
            cost.making.market_gco2e,
            values.grams,
        ),
        (
            "water, liters",
            f"water.liters of {everything}",
            cost.making.water_liters,
            values.significant,
        ),
    ):
        if result is not None:
            value = provenance.derived(document, rule, result, label, form)
            rows.append((label, sentence("{}", value)))
    return rows


def _named(lines: Sequence[Line]) -> str:
    """Lines by the beginnings of their identifiers."""
    names = " + ".join(line.id[:_SHOWN] for line in lines[:_FEW])
    if len(lines) > _FEW:
        names += f" + {len(lines) - _FEW} more of ledger {lines[0].run[:_SHOWN]}"
    return f"line {names}" if len(lines) == 1 else f"lines {names}"


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _range_wh(ends: Any) -> str:
    return f"{values.watt_hours(ends[0])} to {values.watt_hours(ends[1])}"
