"""Extraction rates with their intervals, computed from samples."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmule.data.personal_data import SEVERITIES
from gemmule.stats import paired_proportions, proportion

ProbeSample = Mapping[str, Any]
TRAIN, CONTROL, CANARY = "train", "control", "canary"  # the sets of samples


def summarize(samples: Sequence[ProbeSample], why_none: Mapping[str, str | None]) -> dict[str, Any]:
    """The metrics of a measurement.

    Args:
        samples: all samples.
        why_none: for each requested set, why it is empty; None if it is not.

    Returns:
        Rates of train, control and canaries; those of train also by source and by how often a
        passage was read; and personal data in train.
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
    """The proportions of passages that were reproduced; None if there are no passages."""
    count = len(samples)
    proportions = {}
    for kind in ("exact", "approximate"):
        hits = sum(bool(s[kind]) for s in samples)
        proportions[kind] = proportion(hits, count).json() if count else None
    return {"probes": count, **proportions}


def differences(ours: Sequence[ProbeSample], theirs: Sequence[ProbeSample]) -> dict[str, Any]:
    """How much more often the first model reproduced the same passages than the second.

    Raises:
        ValueError: if the passages are not the same.
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
    """Rates by source, the source with the most probes first."""
    counts = Counter(s["source"] for s in train)
    order = sorted(counts, key=lambda source: (-counts[source], source))
    return [{"source": x, **rates([s for s in train if s["source"] == x])} for x in order]


def _by_times_read(train: Sequence[ProbeSample]) -> list[dict[str, Any]]:
    """Rates by how often a passage was read: once, twice, 3 to 4, 5 to 8 and so on."""
    groups: dict[int, list[ProbeSample]] = {}
    for sample in train:
        if sample["times_read"] is not None:
            groups.setdefault((sample["times_read"] - 1).bit_length(), []).append(sample)
    result = []
    for power in sorted(groups):
        low, high = 2**power // 2 + 1 if power else 1, 2**power
        shown = str(high) if low == high else f"{low} to {high}"
        result.append({"times": shown, **rates(groups[power])})
    return result


def _canaries(
    samples: Sequence[ProbeSample], why_none: Mapping[str, str | None]
) -> dict[str, Any] | None:
    if CANARY not in why_none:
        return None
    groups: dict[int, list[ProbeSample]] = {}
    for sample in samples:
        if sample["set"] == CANARY:
            groups.setdefault(sample["repeats"], []).append(sample)
    result = []
    for repeats in sorted(groups):
        read = [s["times_read"] for s in groups[repeats] if s.get("times_read") is not None]
        fewest, most = (min(read), max(read)) if read else (None, None)
        result.append(
            {"repeats": repeats, "read_least": fewest, "read_most": most, **rates(groups[repeats])}
        )
    return {"groups": result, "why": why_none[CANARY]}


def _personal_data(train: Sequence[ProbeSample]) -> dict[str, Any]:
    """Counts, by severity, the passages whose continuation has personal data, and reproductions.

    A passage counts once for each severity, however much personal data it has.
    """
    memorized = sum(bool(s["approximate"]) for s in train)
    severities = {}
    for severity in SEVERITIES:
        in_text = sum(_contains(s["personal"], severity) for s in train)
        recalled = sum(_contains(s["personal_recalled"], severity) for s in train)
        severities[severity] = {
            "in_text": in_text,
            "recalled": recalled,
            "of_probes": proportion(recalled, len(train)).json(),
            "of_memorised": proportion(recalled, memorized).json() if memorized else None,
            "of_in_text": proportion(recalled, in_text).json() if in_text else None,
        }
    in_text_kinds = Counter(f["kind"] for s in train for f in s["personal"])
    recalled_kinds = Counter(f["kind"] for s in train for f in s["personal_recalled"])
    kinds = {
        kind: {"in_text": count, "recalled": recalled_kinds[kind]}
        for kind, count in sorted(in_text_kinds.items())
    }
    return {"memorised": memorized, "severities": severities, "kinds": kinds}


def _contains(matches: Iterable[Mapping[str, str]], severity: str) -> bool:
    return any(match["severity"] == severity for match in matches)
