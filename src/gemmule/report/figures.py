"""Figures that know where they come from, and how they are written.

Everything the card shows as a number goes through a Ledger, so that the page can say of each
which file and key it was read from.
"""

import dataclasses
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from gemmule.report.run_files import Document, is_number

UNKNOWN = "not measured"
Format = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of the card.

    Attributes:
        label: what it is, for the table of sources.
        value: as the file holds it; None when not known.
        text: as the card shows it.
        file: the file it was read from, or "computed".
        key: dotted key in that file, or the rule it was computed by.
    """

    label: str
    value: Any
    text: str
    file: str
    key: str

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return self.value is not None


Sentence = list[str | Figure]


def say(text: str, *parts: "Figure | Sentence") -> Sentence:
    """A sentence with figures (or other sentences) in the places marked {}."""
    words = text.split("{}")
    sentence: Sentence = [words[0]]
    for part, more in zip(parts, words[1:], strict=True):
        sentence += [part] if isinstance(part, Figure) else part
        sentence.append(more)
    return [piece for piece in sentence if piece != ""]


class Ledger:
    """Hands out figures and remembers each once, in the order they were first used."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], Figure] = {}

    @property
    def figures(self) -> list[Figure]:
        """Every figure handed out."""
        return list(self._figures.values())

    def take(self, document: Document | None, key: str, label: str, form: Format) -> Figure:
        """A figure from a file; `UNKNOWN` when the file or the key is not there."""
        value = document.get(key) if document is not None else None
        if isinstance(value, str):
            value = without_folders(value)
        text = UNKNOWN if value is None else form(value)
        figure = Figure(label, value, text, document.file if document else "no file", key)
        return self._figures.setdefault((figure.file, key), figure)

    def difference(self, a: Figure, b: Figure, label: str, form: Format) -> Figure:
        """The figure |a - b|, computed; unknown when either is."""
        value = abs(a.value - b.value) if a.known and b.known else None
        text = UNKNOWN if value is None else form(value)
        rule = f"|{a.file}: {a.key} - {b.file}: {b.key}|"
        return self._figures.setdefault(("", rule), Figure(label, value, text, "computed", rule))

    def total(self, parts: list[Figure], label: str, form: Format) -> Figure:
        """The sum of figures; unknown when any is."""
        value = sum(p.value for p in parts) if all(p.known for p in parts) else None
        text = UNKNOWN if value is None else form(value)
        rule = " + ".join(f"{p.file}: {p.key}" for p in parts)
        return self._figures.setdefault(("", rule), Figure(label, value, text, "computed", rule))


def without_folders(text: str) -> str:
    """Of an absolute path only the last part: a published card shows nobody's folders."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f"…/{kind(text).name}"
    return text


def loss(value: Any) -> str:
    """Nats per token or bits per byte, three decimals."""
    return f"{value:.3f}"


def significant(value: Any) -> str:
    """Four significant digits without an exponent."""
    return f"{value:,.4g}" if abs(value) < 10000 else f"{value:,.0f}"


def count(value: Any) -> str:
    """A whole number shortened: 950, 12.3 k, 1.52 M."""
    return _prefixed(float(value), ["", "k", "M", "G", "T"]).strip()


def tick(value: float) -> str:
    """An axis label: 0, 250 k, 1.5 M, 30 T."""
    prefixes, step = ["", "k", "M", "G", "T", "P", "E", "Z"], 0
    while abs(value) >= 1000 * (1 - 1e-9) and step < len(prefixes) - 1:
        value /= 1000
        step += 1
    return f"{value:.4g} {prefixes[step]}".strip()


def exact(value: Any) -> str:
    """A whole number in full: 1,524,096."""
    return f"{value:,}" if is_number(value) else str(value)


def flops(value: Any) -> str:
    """A number of floating-point operations: 45.0 TFLOP."""
    return _prefixed(float(value), ["", "k", "M", "G", "T", "P", "E", "Z"]) + "FLOP"


def duration(value: Any) -> str:
    """Seconds as hours, minutes and seconds."""
    if value < 59.5:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def watt_hours(value: Any) -> str:
    """Watt-hours: 12.3 Wh, 1.20 kWh."""
    return f"{_three(value / 1000)} kWh" if value >= 999.5 else f"{_three(value)} Wh"


def grams(value: Any) -> str:
    """Grams of CO2 equivalent: 5.80 g, 1.20 kg."""
    return f"{_three(value / 1000)} kg CO₂e" if value >= 999.5 else f"{_three(value)} g CO₂e"


def _three(value: float) -> str:
    """Three significant digits, trailing zeros kept; `value` below 1000."""
    return "0" if value == 0 else f"{value:#.3g}".rstrip(".")


def _prefixed(value: float, prefixes: list[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value /= 1000
        step += 1
    number = f"{value:.0f}" if step == 0 else _three(value)
    return f"{number} {prefixes[step]}"
