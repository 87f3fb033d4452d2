"""A gate for releases: limits on figures, and a model that the new one must not be worse than.

What a gate names and nobody measured fails it: a gate never passes because something was left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gemmule import files
from gemmule.config import Config, nearest
from gemmule.errors import ConfigError
from gemmule.evals.safety import suite
from gemmule.evals.safety.evaluate import values_of
from gemmule.evals.safety.metric import Sample, worse_by

EXIT_CODE = 3


class Limit(Config):
    """What a figure must keep within, percent.

    Attributes:
        min: the least.
        max: the most.
        on: "value": the figure itself; "interval": its whole 95% interval, so that few questions
            pass no gate.
    """

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)
    on: Literal["value", "interval"] = "value"

    @model_validator(mode="after")
    def _limits_something(self) -> "Limit":
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Gate(Config):
    """A gate file.

    Attributes:
        limits: by figure.
        baseline: a model or a result to compare with.
        margins: by figure: so many points worse than the baseline is still fine.
    """

    limits: dict[str, Limit] = Field(default_factory=dict)
    baseline: str | None = None
    margins: dict[str, float] = Field(default_factory=dict)

    @field_validator("margins")
    @classmethod
    def _margins_are_distances(cls, margins: dict[str, float]) -> dict[str, float]:
        for name, margin in margins.items():
            if not math.isfinite(margin) or margin < 0:
                raise ValueError(f"the margin of {name} is {margin:g}; it must be 0 or more points")
        return margins

    @model_validator(mode="after")
    def _names_figures(self) -> "Gate":
        known = list(suite.figures())
        for name in (*self.limits, *self.margins):
            if name not in known:
                raise ValueError(f"there is no figure {name!r}; {nearest(name, known)}")
        if not self.limits and not self.margins:
            raise ValueError("it checks nothing: set limits, or margins and a baseline")
        return self


@dataclass(frozen=True)
class Check:
    """What came of one rule.

    Attributes:
        figure: its name.
        rule: in words.
        passed: whether it holds.
        found: in words.
    """

    figure: str
    rule: str
    passed: bool
    found: str

    def json(self) -> dict[str, Any]:
        """As it is kept in result files."""
        return {
            "figure": self.figure,
            "rule": self.rule,
            "passed": self.passed,
            "found": self.found,
        }


def load_gate(path: Path, baseline: str | None) -> Gate:
    """Reads a gate file.

    Args:
        path: TOML.
        baseline: takes the place of the file's own.

    Raises:
        ConfigError: naming what is wrong, and for margins without a baseline.
    """
    gate = Gate.load(path)
    if baseline is not None:
        gate = gate.model_copy(update={"baseline": baseline})
    if gate.margins and gate.baseline is None:
        raise ConfigError(
            f"{path} has margins and names no baseline: set baseline in it, or give --baseline"
        )
    return gate


def check(
    gate: Gate,
    result: Mapping[str, Any],
    samples: Sequence[Sample],
    base: tuple[Mapping[str, Any], Sequence[Sample]] | None,
) -> list[Check]:
    """Every rule of a gate, in its order.

    Args:
        gate: the rules.
        result: the model's.
        samples: the model's.
        base: the baseline's result and samples, if the gate has margins.
    """
    found = [
        _limit(name, limit, result["figures"].get(name)) for name, limit in gate.limits.items()
    ]
    for name, margin in gate.margins.items():
        assert base is not None
        found.append(_margin(name, margin, (result, samples), base))
    return found


def _missing(figure: Mapping[str, Any] | None) -> str | None:
    if figure is None:
        return "not measured: its benchmark was not among the tasks"
    return figure.get("missing")


def _limit(name: str, limit: Limit, figure: Mapping[str, Any] | None) -> Check:
    bounds = [f"at least {limit.min:g}"] if limit.min is not None else []
    bounds += [f"at most {limit.max:g}"] if limit.max is not None else []
    rule = " and ".join(bounds) + (" (whole interval)" if limit.on == "interval" else "")
    missing = _missing(figure)
    if missing is not None or figure is None:
        return Check(name, rule, False, missing or "not measured")
    low, high = (
        (figure["low"], figure["high"])
        if limit.on == "interval"
        else (figure["value"], figure["value"])
    )
    passed = (limit.min is None or low >= limit.min) and (limit.max is None or high <= limit.max)
    return Check(name, rule, passed, shown(figure))


def _margin(
    name: str,
    margin: float,
    new: tuple[Mapping[str, Any], Sequence[Sample]],
    base: tuple[Mapping[str, Any], Sequence[Sample]],
) -> Check:
    rule = f"at most {margin:g} point{'' if margin == 1 else 's'} worse than the baseline"
    for (result, _), whose in ((new, "here"), (base, "of the baseline")):
        missing = _missing(result["figures"].get(name))
        if missing is not None:
            return Check(name, rule, False, f"{whose}: {missing}")
    figure = suite.figures()[name]
    other = _otherwise(figure_scored(name), new[0], base[0])
    if other:
        return Check(name, rule, False, f"not comparable: {other}")
    try:
        worse = worse_by(figure, values_of(new[1], name), values_of(base[1], name))
    except ValueError:
        return Check(name, rule, False, "not comparable: no questions in common")
    # Worse for certain: the whole interval lies beyond the margin.
    passed = worse.low <= margin
    if worse.value < 0:
        text = f"{-worse.value:.2f} points better ({-worse.high:.2f} to {-worse.low:.2f})"
    else:
        text = f"{worse.value:.2f} points worse ({worse.low:.2f} to {worse.high:.2f})"
    return Check(name, rule, passed, f"{text}, {worse.n:,} questions in common")


def figure_scored(name: str) -> bool:
    """Whether a figure depends on a toxicity scorer."""
    return any(b.scored and name in (f.name for f in b.figures) for b in suite.ALL)


def _otherwise(scored: bool, new: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Why two results do not compare; empty when they do."""
    if not scored:
        return ""
    same = ("kind", "weights", "label", "probability")
    ours, theirs = ([(r["scorer"] or {}).get(k) for k in same] for r in (new, base))
    if ours != theirs:
        return "the baseline's continuations were judged by another scorer"
    written = ("temperature", "max_new_tokens")
    if any(new["settings"].get(k) != base["settings"].get(k) for k in written):
        return "the baseline's continuations were written otherwise"
    return ""


def shown(figure: Mapping[str, Any]) -> str:
    """A figure with its interval: 37.67 (35.20 to 40.14)."""
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def record(gate: Gate, path: Path, checks: Sequence[Check]) -> dict[str, Any]:
    """As it is kept in the result."""
    return {
        "file": path.name,
        "sha256": files.sha256_file(path),
        "baseline": gate.baseline,
        "passed": all(c.passed for c in checks),
        "checks": [c.json() for c in checks],
    }
