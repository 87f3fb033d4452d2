"""From samples to rates, each with its interval."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmule.data.personal_data import SEVERITIES
from gemmule.stats import paired_proportions, proportion

ProbeSample = Mapping[str, Any]
TRAIN, CONTROL, CANARY = "train", "control", "canary"  # the sets of samples


def summarise(samples: Sequence[ProbeSample], why_none: Mapping[str, str | None]) -> dict[str, Any]:
    """The figures of a measurement.

    Args:
        samples: all of them.
        why_none: of each set that was asked for, why it is empty if it is.

    Returns:
        train, control and canaries; train also by source and by how often it was read; and its
        personal data.
    """
    train = [s for s in samples if s["set"] == TRAIN]
    control = [s for s in samples if s["set"] == CONTROL]
    return {
        "train": rates(train),
        "control": {"split": "heldout", **rates(control), "why": why_none.get(CONTROL)},
        "sources": _by_source(train),
        "times_read": _by_times_read(train),
        "canaries": _canaries(samples, why_none),
        "personal_data": _personal_data(train),
    }


def rates(samples: Sequence[ProbeSample]) -> dict[str, Any]:
    """How many passages were given back; None where there is none to count."""
    count = len(samples)
    shares = {}
    for kind in ("exact", "approximate"):
        hits = sum(bool(s[kind]) for s in samples)
        shares[kind] = proportion(hits, count).json() if count else None
    return {"probes": count, **shares}


def differences(ours: Sequence[ProbeSample], theirs: Sequence[ProbeSample]) -> dict[str, Any]:
    """What the first gave back more often than the second, over the same passages.

    Raises:
        ValueError: when they are not the same.
    """
    a, b = ([s for s in samples if s["set"] == TRAIN] for samples in (ours, theirs))
    places = [[(s["document"], s["position"]) for s in samples] for samples in (a, b)]
    if places[0] != places[1]:
        raise ValueError("the two measurements are of other passages")
    return {
        kind: paired_proportions([s[kind] for s in a], [s[kind] for s in b]).json()
        for kind in ("exact", "approximate")
    }


def _by_source(train: Sequence[ProbeSample]) -> list[dict[str, Any]]:
    """Most probes first."""
    counts = Counter(s["source"] for s in train)
    order = sorted(counts, key=lambda source: (-counts[source], source))
    return [{"source": x, **rates([s for s in train if s["source"] == x])} for x in order]


def _by_times_read(train: Sequence[ProbeSample]) -> list[dict[str, Any]]:
    """Once, twice, 3 to 4, 5 to 8 and so on."""
    groups: dict[int, list[ProbeSample]] = {}
    for sample in train:
        if sample["times_read"] is not None:
            groups.setdefault((sample["times_read"] - 1).bit_length(), []).append(sample)
    found = []
    for power in sorted(groups):
        low, high = 2**power // 2 + 1 if power else 1, 2**power
        shown = str(high) if low == high else f"{low} to {high}"
        found.append({"times": shown, **rates(groups[power])})
    return found


def _canaries(
    samples: Sequence[ProbeSample], why_none: Mapping[str, str | None]
) -> dict[str, Any] | None:
    if CANARY not in why_none:
        return None
    groups: dict[int, list[ProbeSample]] = {}
    for sample in samples:
        if sample["set"] == CANARY:
            groups.setdefault(sample["repeats"], []).append(sample)
    found = []
    for repeats in sorted(groups):
        read = [s["times_read"] for s in groups[repeats] if s.get("times_read") is not None]
        least, most = (min(read), max(read)) if read else (None, None)
        found.append(
            {"repeats": repeats, "read_least": least, "read_most": most, **rates(groups[repeats])}
        )
    return {"groups": found, "why": why_none[CANARY]}


def _personal_data(train: Sequence[ProbeSample]) -> dict[str, Any]:
    """By severity: passages whose continuation holds such data, and those that gave it back.

    A passage counts once for each severity, however much of it there is.
    """
    memorised = sum(bool(s["approximate"]) for s in train)
    severities = {}
    for severity in SEVERITIES:
        in_text = sum(_holds(s["personal"], severity) for s in train)
        recalled = sum(_holds(s["personal_recalled"], severity) for s in train)
        severities[severity] = {
            "in_text": in_text,
            "recalled": recalled,
            "of_probes": proportion(recalled, len(train)).json(),
            "of_memorised": proportion(recalled, memorised).json() if memorised else None,
            "of_in_text": proportion(recalled, in_text).json() if in_text else None,
        }
    in_text_kinds = Counter(f["kind"] for s in train for f in s["personal"])
    recalled_kinds = Counter(f["kind"] for s in train for f in s["personal_recalled"])
    kinds = {
        kind: {"in_text": count, "recalled": recalled_kinds[kind]}
        for kind, count in sorted(in_text_kinds.items())
    }
    return {"memorised": memorised, "severities": severities, "kinds": kinds}


def _holds(findings: Iterable[Mapping[str, str]], severity: str) -> bool:
    return any(finding["severity"] == severity for finding in findings)
