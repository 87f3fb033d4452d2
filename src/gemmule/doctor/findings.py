"""From measurements to rows."""

import dataclasses
import math
from collections.abc import Sequence

from gemmule.doctor.bugs import LOGIT_CHECKS
from gemmule.doctor.probe import MARGIN, Probe
from gemmule.doctor.report import CANNOT_TELL, FAIL, NOT_TESTED, PASS, Row, number


@dataclasses.dataclass(frozen=True)
class Finding:
    """How far a property is from holding, on one set of weights.

    Attributes:
        where: which weights.
        error: what was measured.
        tolerance: what rounding explains.
        effect: what a stack without the property would have shown; None: not known here, so that
            the finding may fail and never pass.
        note: more about a failure.
    """

    where: str
    error: float
    tolerance: float
    effect: float | None = None
    note: str = ""


def property_row(check: str, findings: Sequence[Finding], good: str, bad: str) -> Row:
    """One row from what was found on several sets of weights; the worst counts."""
    if not findings:
        return Row(check, NOT_TESTED, "", f"this backend offers no way to test it: {good}")
    if not all(math.isfinite(f.error) for f in findings):
        return Row(check, CANNOT_TELL, "not finite", "mend the numbers that are not finite first")
    worst = max(findings, key=lambda f: f.error / f.tolerance)
    if worst.error > worst.tolerance:
        figure = f"{number(worst.error)} > {number(worst.tolerance)}"
        return Row(check, FAIL, figure, " ".join(f"{bad} ({worst.where}). {worst.note}".split()))
    seen = [f for f in findings if f.effect is not None and f.effect > MARGIN * f.tolerance]
    if not seen:
        return Row(check, CANNOT_TELL, number(worst.error), f"the bug would not show: {good}")
    sharpest = max(seen, key=lambda f: (f.effect or 0) / f.tolerance)
    return Row(check, PASS, _figure(sharpest.error, sharpest.effect or 0), good)


def _figure(error: float, effect: float) -> str:
    return f"{number(error)}; bug {number(effect)}"


def unless(row: Row, broken: Sequence[str]) -> Row:
    """`row`, or that its failure says nothing while the checks it builds on fail."""
    if row.result == FAIL and broken:
        return Row(row.check, CANNOT_TELL, row.figure, f"mend this first: {broken[0]}")
    return row


def logit_rows(probes: Sequence[Probe], head_is_wrong: bool = False) -> list[Row]:
    """The rows that comparing logits decides, and one for whatever has no name.

    Args:
        probes: what was measured, the sharpest first.
        head_is_wrong: the head is known not to be the embedding, which no variant can compute.
    """
    if probes[0].measures_effects:  # all in one walk over the layers
        probes[0].expected([bug.variant for bug in probes[0].bugs])
    rows = [_logit_row(check, good, probes) for check, good in LOGIT_CHECKS.items()]
    return [*rows, _rest_row(probes, head_is_wrong)]


def _logit_row(check: str, good: str, probes: Sequence[Probe]) -> Row:
    for probe in probes:
        for bug in probe.causes or ():
            if bug.check == check:
                return Row(
                    check, FAIL, f"{number(probe.error)}; as bug {number(probe.unexplained)}",
                    f"the logits are those of a model whose {bug.name} ({probe.name}). "
                    f"{bug.remedy[0].upper()}{bug.remedy[1:]}.",
                )  # fmt: skip
    names = {bug.name for probe in probes for bug in probe.bugs if bug.check == check}
    if not names:
        return Row(check, NOT_TESTED, "", f"does not apply to this shape: {good}")
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
            return Row(check, CANNOT_TELL, "", "the logits are wrong as a whole: see the last row")
        missed = "; ".join(sorted(names - set(seen)))
        return Row(check, CANNOT_TELL, "", f"would not show if the {missed}")
    error, effect = min(seen.values(), key=lambda pair: pair[1] / max(pair[0], 1e-30))
    return Row(check, PASS, _figure(error, effect), good)


def _rest_row(probes: Sequence[Probe], head_is_wrong: bool) -> Row:
    check = "nothing else differs"
    wrong = [p for p in probes if p.causes is None]
    if any(math.isinf(p.error) for p in wrong):
        return Row(check, CANNOT_TELL, "not finite", "mend the numbers that are not finite first")
    if wrong and head_is_wrong:
        return Row(check, CANNOT_TELL, number(wrong[0].error), "mend the head first")
    if wrong:
        worst = max(wrong, key=lambda p: p.error / p.tolerance)
        return Row(
            check, FAIL, f"{number(worst.error)} > {number(worst.tolerance)}",
            f"what it computes is not Gemma 2 on {worst.name}, and no known bug, nor two of them, "
            "explains it. Compare layer by layer.",
        )  # fmt: skip
    worst = max(probes, key=lambda p: p.unexplained / p.tolerance)
    figure = f"{number(worst.unexplained)} ≤ {number(worst.tolerance)}"
    return Row(check, PASS, figure, "apart from the rows above, what rounding explains")
