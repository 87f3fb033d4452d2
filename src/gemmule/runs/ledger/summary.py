"""The figures of a model's cost as JSON and as rows of a table, and its SCI scores.

SCI (ISO/IEC 21031): (E x I + M) per R, location-based. SCI for AI has two: of the provider, for
making the model, per training token, operation or parameter; and of the consumer, for using it, per
token. They are not added: the provider's is paid once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.runs.ledger.known import Account
from gemmule.runs.ledger.line import JOULES_PER_WH, Interval
from gemmule.runs.ledger.walk import Cost, Figures, Stage, figures

BOUNDARY = (
    "the machines that ran the activities, whole, with the PUE that was given, and embodied carbon "
    "for that time; not: networks, offices, travel, and what was computed before ledgers were kept"
)


def sci(cost: Cost) -> dict[str, Any]:
    """SCI scores, grams of CO2 equivalent per unit; None where something is not known.

    Returns:
        "provider": per million training tokens, per 10^15 operations and per million parameters.
        "consumer": per thousand generated tokens, of the activities that counted them.
    """
    made, used = cost.making.total_gco2e, cost.generating.total_gco2e

    def per(grams: float | None, amount: float | None, unit: float) -> float | None:
        return None if grams is None or not amount else grams / (amount / unit)

    return {
        "provider": {
            "gco2e_per_million_training_tokens": per(made, cost.trained, 1e6),
            "gco2e_per_pflop": per(made, cost.making.flop, 1e15),
            "gco2e_per_million_parameters": per(made, cost.parameters, 1e6),
        },
        "consumer": {"gco2e_per_thousand_generated_tokens": per(used, cost.generated, 1e3)},
    }


def as_json(cost: Cost) -> dict[str, Any]:
    """The cost with all its parts; each figure's lines by their identifiers."""
    return {
        "name": cost.subject.name,
        "ledger": cost.subject.run,
        "fingerprint": cost.subject.product,
        "making": _figures(cost.making),
        "upper_bound": _figures(cost.upper_bound),
        "without_teacher": _figures(cost.without_teacher),
        "evaluating": _figures(cost.evaluating),
        "using": {
            **_figures(cost.using),
            "generated_tokens": cost.generated,
            "requests_wh": _requests_wh(cost),
        },
        "sci": sci(cost),
        "stages": [_stage(stage) for stage in cost.stages],
        "unknown_sources": [
            source.model_dump(exclude_none=True) for source in _unique(cost.unknown)
        ],
        "others": {
            **_figures(cost.other_cost),
            "names": sorted({account.name for account in cost.others}),
        },
        "boundary": BOUNDARY,
    }


def rows(cost: Cost) -> list[list[str]]:
    """The stages and sums, a row each under `HEADERS`; what counts in part has its share.

    The interval is that of energy; carbon has the same one, relative to its value.
    """
    table = [
        [
            (stage.account.name or stage.account.run)
            + ("" if stage.share == 1 else f", {stage.share:.0%}"),
            stage.account.kind + _ended(stage.whole),
            *_cells(stage.attributed),
        ]
        for stage in cost.stages
    ]
    sums: list[tuple[str, Figures]] = [("made", cost.making)]
    if any(stage.share < 1 for stage in cost.stages):
        sums.append(("made, upper bound", cost.upper_bound))
    if any(stage.without_teacher != stage.share for stage in cost.stages):
        sums.append(("made, teachers given", cost.without_teacher))
    if cost.evaluating.lines:
        sums.append(("evaluated", cost.evaluating))
    if cost.using.lines:
        sums.append(("used", cost.using))
        served = [line for line in cost.subject.using if line.request_joules is not None]
        whole = figures(served)
        joules = sum(line.total_joules for line in served)
        if joules:
            requests = sum(line.request_joules or 0.0 for line in served) / joules
            sums.append(("  requests", whole.scaled(requests)))
            sums.append(("  idle, and starting", whole.scaled(1 - requests)))
    if cost.others:
        sums.append(("others, not part of it", cost.other_cost))
    return [*table, *([name, "", *_cells(each)] for name, each in sums)]


# As wide as a terminal of 80 columns; the rest is in the JSON.
HEADERS = ["activity", "kind", "time", "Wh", "range", "g CO2e", "embodied"]


def notes(cost: Cost) -> list[str]:
    """What a reader has to know of the figures."""
    result = [f"Counted: {BOUNDARY}."]
    names = sorted({source.name or source.role for source in cost.unknown})
    if names:
        result.append(f"Not known, and not in it: {', '.join(names)} (no ledger in reach).")
    result += [f"Left out, and what depends on it: {problem}." for problem in cost.broken]
    if cost.making.unknown:
        result.append(f"{cost.making.unknown} lines have no energy: the sums are lower bounds.")
    missing = {
        text for stage in cost.stages for line in stage.account.making
        for text in line.not_measured.values() if text.startswith("not measured")
    }  # fmt: skip
    result += [text[0].upper() + text[1:] + "." for text in sorted(missing)]
    return result


def _requests_wh(cost: Cost) -> float | None:
    """Watt-hours of requests to servers, with the PUE; None if the model was not served."""
    served = [line for line in cost.subject.using if line.request_joules is not None]
    if not served:
        return None
    return sum((line.request_joules or 0.0) * line.pue for line in served) / JOULES_PER_WH


def _ended(whole: Figures) -> str:
    return f", {whole.failed} of {whole.lines} failed or stopped" if whole.failed else ""


def _cells(each: Figures) -> list[str]:
    return [
        _duration(each.seconds),
        "not known" if each.energy_wh is None else f"{each.energy_wh.best:.3g}",
        _interval(each.energy_wh),
        "not known" if each.gco2e is None else f"{each.gco2e.best:.3g}",
        f"{each.embodied_gco2e:.2g}",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.low:.2g}-{value.high:.2g}"


def _figures(each: Figures) -> dict[str, Any]:
    return {
        "energy_wh": None if each.energy_wh is None else each.energy_wh.model_dump(),
        "gco2e": None if each.gco2e is None else each.gco2e.model_dump(),
        "market_gco2e": each.market_gco2e,
        "embodied_gco2e": each.embodied_gco2e,
        "water_liters": each.water_liters,
        "seconds": each.seconds,
        "flop": each.flop,
        "lines": each.lines,
        "lines_without_energy": each.unknown,
        "lines_failed_or_stopped": each.failed,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    account: Account = stage.account
    return {
        "name": account.name,
        "ledger": account.run,
        "kind": account.kind,
        "roles": list(stage.roles),
        "share": stage.share,
        "attributed": _figures(stage.attributed),
        "whole": _figures(stage.whole),
        "lines": [line.id for line in stage.lines],
    }


def _unique(sources: Sequence[Any]) -> list[Any]:
    seen: Mapping[tuple[str, str | None], Any] = {
        (source.role, source.fingerprint): source for source in sources
    }
    return [*seen.values()]
