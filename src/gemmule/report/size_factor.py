"""The card's size factors: how much larger a model from scratch has to be for the same loss."""

from typing import Any

from gemmule.report import values
from gemmule.report.parts import Section
from gemmule.report.run_files import Document, Quickstart, Run
from gemmule.report.values import Provenance, Sentence, Value, sentence

_TIMES = values.decimals(1)


def section(source: Run | Quickstart, provenance: Provenance) -> Section | None:
    """The section; None if no size factor was measured.

    Of a quickstart, those of the sweep in its folder, whose students are other runs.
    """
    document = source.size_sweep if isinstance(source, Quickstart) else source.size_factor
    if document is None:
        return None
    rows: list[tuple[str, Sentence]] = [
        (
            "meaning",
            [
                "how many times larger a model trained from scratch has to be to reach the "
                "distilled model's held-out loss; the teacher's own training is not counted"
            ],
        )
    ]
    for i, entry in enumerate(document.content["size_factors"]):
        name = f"{entry['group']} distilled, at {entry['basis']}"
        rows.append((name, _in_words(document, f"size_factors.{i}", name, provenance)))
    return Section("Size factor", rows)


def _in_words(document: Document, key: str, name: str, provenance: Provenance) -> Sentence:
    own, whole = "factor", "factor_of_all_parameters"

    def take(part: str, end: str) -> Value:
        label = f"size factor, {name}" + ("" if part == own else ", embedding counted")
        return provenance.take(
            document, f"{key}.{part}.{end}", label if end == "value" else f"{label}: {end}", _TIMES
        )

    bound: Any = document.get(f"{key}.{own}.bound")
    if document.get(f"{key}.{own}.value") is None:
        return [values.UNKNOWN if bound is None else str(bound)]
    seeds = provenance.take(document, f"{key}.{own}.n", f"seeds, {name}", values.exact)
    counted = sentence(
        f"; counting the embedding {_before(document, key, whole)}{{}}", take(whole, "value")
    )
    if bound is not None:
        return [*sentence(f"{bound} {{}}, seeds: {{}}", take(own, "value"), seeds), *counted]
    if document.get(f"{key}.{own}.low") is None:
        return [*sentence("{}, one seed", take(own, "value")), *counted]
    ends = take(own, "low"), take(own, "high")
    return [*sentence("{} ({} to {}), seeds: {}", take(own, "value"), *ends, seeds), *counted]


def _before(document: Document, key: str, part: str) -> str:
    bound = document.get(f"{key}.{part}.bound")
    return f"{bound} " if bound else ""
