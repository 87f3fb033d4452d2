"""What the card is made of: plain data, no markup, filled by page.py and read by the templates."""

import dataclasses
from collections.abc import Sequence

from gemmule.report.benchmarks import Benchmarks
from gemmule.report.figures import Figure, Sentence
from gemmule.report.memorization import Memorization
from gemmule.report.plots import Line, Plot
from gemmule.report.run_files import Run
from gemmule.report.safety import Safety


@dataclasses.dataclass(frozen=True)
class Tile:
    """One large figure with its name and a word of context."""

    label: str
    figure: Figure
    note: str


@dataclasses.dataclass(frozen=True)
class Rung:
    """One model on the scale of held-out losses; `percent` is its place from left to right."""

    name: str
    role: str
    figure: Figure
    note: Sentence
    percent: float


@dataclasses.dataclass(frozen=True)
class Group:
    """Models that are compared with each other, and what came out."""

    title: str
    rows: Sequence[tuple[str, Sequence[Figure]]]
    verdict: Sentence
    best: str | None


@dataclasses.dataclass(frozen=True)
class Section:
    """Named facts in two columns."""

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
    sources: Sequence[Figure]
    distilled: bool
    model: Run
    benchmarks: Benchmarks | None = None
    safety: Safety | None = None
    memorization: Memorization | None = None
