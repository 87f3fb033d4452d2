"""The parts of a card: plain data without markup, filled by page.py and read by the templates."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gemmule.report.answers import Answers
from gemmule.report.benchmarks import Benchmarks
from gemmule.report.ledger import CostTable
from gemmule.report.lineage import Stage
from gemmule.report.memorization import Memorization
from gemmule.report.plots import Line, Plot
from gemmule.report.run_files import Run
from gemmule.report.safety import Safety
from gemmule.report.values import Sentence, Value


@dataclasses.dataclass(frozen=True)
class Tile:
    """One value in large type, with its label and a short note."""

    label: str
    value: Value
    note: str


@dataclasses.dataclass(frozen=True)
class Rung:
    """One model on the scale of held-out losses; `percent` is its position from the left."""

    name: str
    role: str
    value: Value
    note: Sentence
    percent: float


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are compared with each other, and the verdict."""

    title: str
    rows: Sequence[tuple[str, Sequence[Value]]]
    verdict: Sentence
    best: str | None


@dataclasses.dataclass(frozen=True)
class Section:
    """Labels and their values, in two columns."""

    title: str
    rows: Sequence[tuple[str, Sentence]]


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything the templates need."""

    name: str
    headline: Sentence
    lead: Sequence[Sentence]
    tiles: Sequence[Tile]
    rungs: Sequence[Rung]
    columns: Sequence[str]
    groups: Sequence[Group]
    lines: Sequence[Line]
    pictures: Sequence[Plot]
    samples: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]
    python: str
    shell: str
    transformers: str
    architecture: Section
    data: Section
    procedure: Section
    energy: Section
    limitations: Sequence[Sentence]
    sources: Sequence[Value]
    distilled: bool
    model: Run
    benchmarks: Benchmarks | None = None
    safety: Safety | None = None
    memorization: Memorization | None = None
    size_factor: Section | None = None
    lineage: Sequence[Stage] = ()
    cost: CostTable | None = None
    emissions: dict[str, Any] | None = None
    answers: Answers | None = None
