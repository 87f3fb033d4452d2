"""Turns measurements into rows of the table."""

import dataclasses
import math
from collections.abc import Sequence

from gemmule.doctor.bugs import LOGIT_CHECKS
from gemmule.doctor.probe import MARGIN, Probe
from gemmule.doctor.report import CANNOT_TELL, FAIL, NOT_TESTED, PASS, Check, number


@dataclasses.dataclass(frozen=True)
class Finding:
    """Deviation from a property on one set of weights.

    Attributes:
        where: the weights.
        error: measured deviation.
        tolerance: deviation that rounding explains.
        effect: deviation of an implementation without the property; None if unknown, in which case
            the finding can fail but not pass.
        note: details of a failure.
    """

    where: str
    error: float
    tolerance: float
    effect: float | None = None
    note: str = ""


def property_row(check: str, findings: Sequence[Finding], good: str, bad: str) -> Check:
    """One row from findings on several sets of weights; the worst counts."""
    if not findings:
        return Check(check, NOT_TESTED, "", f"this backend offers no way to test it: {good}")
    if not all(math.isfinite(f.error) for f in findings):
        return Check(check, CANNOT_TELL, "not finite", "fix the numbers that are not finite first")
    worst = max(findings, key=lambda f: f.error / f.tolerance)
    if worst.error > worst.tolerance:
        figure = f"{number(worst.error)} > {number(worst.tolerance)}"
        return Check(check, FAIL, figure, " ".join(f"{bad} ({worst.where}). {worst.note}".split()))
    seen = [f for f in findings if f.effect is not None and f.effect > MARGIN * f.tolerance]
    if not seen:
        return Check(check, CANNOT_TELL, number(worst.error), f"the bug would not show: {good}")
    sharpest = max(seen, key=lambda f: (f.effect or 0) / f.tolerance)
    return Check(check, PASS, _figure(sharpest.error, sharpest.effect or 0), good)


def _figure(error: float, effect: float) -> str:
    return f"{number(error)}; bug {number(effect)}"


def unless(row: Check, broken: Sequence[str]) -> Check:
    """`row`; "cannot tell" if it failed while a check that it builds on failed as well."""
    if row.result == FAIL and broken:
        return Check(row.check, CANNOT_TELL, row.figure, f"fix this first: {broken[0]}")
    return row


def logit_rows(probes: Sequence[Probe], head_is_wrong: bool = False) -> list[Check]:
    """The checks that compare logits, and one for deviations without a known cause.

    Args:
        probes: the measurements, the most sensitive first.
        head_is_wrong: whether the head is known not to be the embedding, which no variant covers.
    """
    if probes[0].measures_effects:  # all in one pass over the layers
        probes[0].expected([bug.variant for bug in probes[0].bugs])
    rows = [_logit_row(check, good, probes) for check, good in LOGIT_CHECKS.items()]
    return [*rows, _rest_row(probes, head_is_wrong)]


def _logit_row(check: str, good: str, probes: Sequence[Probe]) -> Check:
    for probe in probes:
        for bug in probe.causes or ():
            if bug.check == check:
                return Check(
                    check, FAIL, f"{number(probe.error)}; as bug {number(probe.unexplained)}",
                    f"the logits are those of a model whose {bug.name} ({probe.name}). "
                    f"{bug.remedy[0].upper()}{bug.remedy[1:]}.",
                )  # fmt: skip
    names = {bug.name for probe in probes for bug in probe.bugs if bug.check == check}
    if not names:
        return Check(check, NOT_TESTED, "", f"does not apply to this shape: {good}")
    seen: dict[str, tuple[float, float]] = {}
    for probe in probes:
        if probe.causes is None or not probe.measures_effects:
            continue
        for bug in probe.bugs:
            if bug.check != check or bug.name in seen:
                continue
            effect = probe.effect(bug)
            if effect > MARGIN * probe.tolerance:
                seen[bug.name] = (probe.unexplained, effect)
    if names - set(seen):
        if any(probe.causes is None for probe in probes):
            return Check(check, CANNOT_TELL, "", "all logits are wrong: see the last row")
        missed = "; ".join(sorted(names - set(seen)))
        return Check(check, CANNOT_TELL, "", f"would not show if the {missed}")
    error, effect = min(seen.values(), key=lambda pair: pair[1] / max(pair[0], 1e-30))
    return Check(check, PASS, _figure(error, effect), good)


def _rest_row(probes: Sequence[Probe], head_is_wrong: bool) -> Check:
    check = "nothing else differs"
    wrong = [p for p in probes if p.causes is None]
    if any(math.isinf(p.error) for p in wrong):
        return Check(check, CANNOT_TELL, "not finite", "fix the numbers that are not finite first")
    if wrong and head_is_wrong:
        return Check(check, CANNOT_TELL, number(wrong[0].error), "fix the head first")
    if wrong:
        worst = max(wrong, key=lambda p: p.error / p.tolerance)
        return Check(
            check, FAIL, f"{number(worst.error)} > {number(worst.tolerance)}",
            f"the logits are not Gemma 2's on {worst.name}, and no known bug or pair of bugs "
            "explains them. Compare layer by layer.",
        )  # fmt: skip
    worst = max(probes, key=lambda p: p.unexplained / p.tolerance)
    figure = f"{number(worst.unexplained)} ≤ {number(worst.tolerance)}"
    return Check(
        check, PASS, figure, "apart from the rows above, rounding explains the differences"
    )
