"""The values a card shows: each knows the file and key it was read from, and how it is written.

Every number on the card goes through a `Provenance`, so that the page can list its source.
"""

import dataclasses
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from gemmule.report.run_files import Document, is_number

UNKNOWN = "not measured"
Format = Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Value:
    """One value on the card.

    Attributes:
        label: what it is, for the table of sources.
        value: the value as the file holds it; None if unknown.
        text: the value as the card shows it.
        file: the file it was read from, or "computed".
        key: its dotted key in that file, or the rule it was computed by.
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


Sentence = list[str | Value]


def sentence(text: str, *parts: "Value | Sentence") -> Sentence:
    """A sentence with values, or other sentences, in the places marked {}."""
    before, *after = text.split("{}")
    result: Sentence = [before]
    for part, more in zip(parts, after, strict=True):
        result += [part] if isinstance(part, Value) else part
        result.append(more)
    return [part for part in result if part != ""]


class Provenance:
    """Reads values from files, and keeps each once, in the order they were first used."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Value] = {}

    @property
    def values(self) -> list[Value]:
        """Every value that was read or computed."""
        return list(self._values.values())

    def take(self, document: Document | None, key: str, label: str, form: Format) -> Value:
        """A value from a file; its text is `UNKNOWN` if the file or the key does not exist."""
        content = document.get(key) if document is not None else None
        if isinstance(content, str):
            content = without_folders(content)
        text = UNKNOWN if content is None else form(content)
        value = Value(label, content, text, document.file if document else "no file", key)
        return self._values.setdefault((value.file, key), value)

    def difference(self, a: Value, b: Value, label: str, form: Format) -> Value:
        """The value |a - b|, computed; unknown if either is."""
        result = abs(a.value - b.value) if a.known and b.known else None
        return self._computed(result, label, form, f"|{a.file}: {a.key} - {b.file}: {b.key}|")

    def total(self, parts: list[Value], label: str, form: Format) -> Value:
        """The sum of values; unknown if any is."""
        result = sum(p.value for p in parts) if all(p.known for p in parts) else None
        return self._computed(result, label, form, " + ".join(f"{p.file}: {p.key}" for p in parts))

    def derived(
        self, document: Document, rule: str, result: Any, label: str, form: Format
    ) -> Value:
        """A value that was computed from several entries of one file.

        Args:
            document: the file.
            rule: how it was computed, in words with keys.
            result: the value.
            label: what it is, for the table of sources.
            form: how it is written.
        """
        return self._computed(result, label, form, f"{document.file}: {rule}")

    def _computed(self, result: Any, label: str, form: Format, rule: str) -> Value:
        text = UNKNOWN if result is None else form(result)
        return self._values.setdefault(("", rule), Value(label, result, text, "computed", rule))


def without_folders(text: str) -> str:
    """The last part of an absolute path: a published card shows no folders of its author."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f"…/{kind(text).name}"
    return text


def decimals(count: int, *, percent: bool = False, signed: bool = False) -> Format:
    """A format with `count` decimals.

    Args:
        count: number of decimals.
        percent: multiply by 100 first.
        signed: write the sign of positive numbers, too.
    """

    def written(value: Any) -> str:
        return f"{100 * value if percent else value:{'+' if signed else ''}.{count}f}"

    return written


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
