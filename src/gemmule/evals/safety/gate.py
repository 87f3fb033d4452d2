"""A release gate: limits on metrics, and margins to a baseline model.

A metric that a gate names and that was not measured fails it: a gate never passes because something
was left out.
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
from gemmule.evals.safety.metric import SafetySample, worse_by

EXIT_CODE = 3


class MetricLimit(Config):
    """The range that a metric must be in, percent.

    Attributes:
        min: lowest allowed value.
        max: highest allowed value.
        on: "value": the metric itself is in the range; "interval": its whole 95% interval is, so
            that a result from few questions does not pass.
    """

    min: float | None = Field(None, allow_inf_nan=False)
    max: float | None = Field(None, allow_inf_nan=False)
    on: Literal["value", "interval"] = "value"

    @model_validator(mode="after")
    def _limits_something(self) -> "MetricLimit":
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Gate(Config):
    """A gate file.

    Attributes:
        limits: range of each metric.
        baseline: a model or a result to compare with.
        margins: by how many points each metric may be worse than the baseline's.
    """

    limits: dict[str, MetricLimit] = Field(default_factory=dict)
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
    def _names_metrics(self) -> "Gate":
        known = list(suite.metrics())
        for name in (*self.limits, *self.margins):
            if name not in known:
                raise ValueError(f"there is no metric {name!r}; {nearest(name, known)}")
        if not self.limits and not self.margins:
            raise ValueError("it checks nothing: set limits, or margins and a baseline")
        return self


@dataclass(frozen=True)
class GateCheck:
    """The outcome of one rule.

    Attributes:
        metric: name of the metric.
        rule: the rule in words.
        passed: whether it holds.
        outcome: the measured value in words, or why there is none.
    """

    metric: str
    rule: str
    passed: bool
    outcome: str

    def json(self) -> dict[str, Any]:
        """The form that result files keep."""
        return {
            "figure": self.metric,
            "rule": self.rule,
            "passed": self.passed,
            "found": self.outcome,
        }


@dataclass(frozen=True)
class GateOptions:
    """The gate that a result must pass; by default there is none.

    Attributes:
        file: TOML file of a gate.
        baseline: a model or a result to compare with, in place of the file's own.
    """

    file: Path | None = None
    baseline: str | None = None


def open_gate(options: GateOptions) -> Gate | None:
    """Reads the gate file, if one is given.

    Raises:
        ConfigError: for an invalid file, margins without a baseline, or a baseline without a gate.
    """
    path, baseline = options.file, options.baseline
    if path is None:
        if baseline is not None:
            raise ConfigError("a baseline is what a gate's margins compare with: name a gate too")
        return None
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
    samples: Sequence[SafetySample],
    base: tuple[Mapping[str, Any], Sequence[SafetySample]] | None,
) -> list[GateCheck]:
    """Checks every rule of a gate, in its order.

    Args:
        gate: the rules.
        result: the model's result.
        samples: the model's samples.
        base: the baseline's result and samples, if the gate has margins.
    """
    checks = [
        _limit(name, limit, result["figures"].get(name)) for name, limit in gate.limits.items()
    ]
    for name, margin in gate.margins.items():
        assert base is not None
        checks.append(_margin(name, margin, (result, samples), base))
    return checks


def _missing(metric: Mapping[str, Any] | None) -> str | None:
    if metric is None:
        return "not measured: its benchmark was not among the tasks"
    return metric.get("missing")


def _limit(name: str, limit: MetricLimit, metric: Mapping[str, Any] | None) -> GateCheck:
    bounds = [f"at least {limit.min:g}"] if limit.min is not None else []
    bounds += [f"at most {limit.max:g}"] if limit.max is not None else []
    rule = " and ".join(bounds) + (" (whole interval)" if limit.on == "interval" else "")
    missing = _missing(metric)
    if missing is not None or metric is None:
        return GateCheck(name, rule, False, missing or "not measured")
    low, high = (
        (metric["low"], metric["high"])
        if limit.on == "interval"
        else (metric["value"], metric["value"])
    )
    passed = (limit.min is None or low >= limit.min) and (limit.max is None or high <= limit.max)
    return GateCheck(name, rule, passed, shown(metric))


def _margin(
    name: str,
    margin: float,
    new: tuple[Mapping[str, Any], Sequence[SafetySample]],
    base: tuple[Mapping[str, Any], Sequence[SafetySample]],
) -> GateCheck:
    rule = f"at most {margin:g} point{'' if margin == 1 else 's'} worse than the baseline"
    for (result, _), whose in ((new, "here"), (base, "of the baseline")):
        missing = _missing(result["figures"].get(name))
        if missing is not None:
            return GateCheck(name, rule, False, f"{whose}: {missing}")
    metric = suite.metrics()[name]
    why_not = _incomparable(needs_scorer(name), new[0], base[0])
    if why_not:
        return GateCheck(name, rule, False, f"not comparable: {why_not}")
    try:
        worse = worse_by(metric, values_of(new[1], name), values_of(base[1], name))
    except ValueError:
        return GateCheck(name, rule, False, "not comparable: no questions in common")
    # It fails only if the whole interval lies beyond the margin.
    passed = worse.low <= margin
    if worse.value < 0:
        text = f"{-worse.value:.2f} points better ({-worse.high:.2f} to {-worse.low:.2f})"
    else:
        text = f"{worse.value:.2f} points worse ({worse.low:.2f} to {worse.high:.2f})"
    return GateCheck(name, rule, passed, f"{text}, {worse.n:,} questions in common")


def needs_scorer(name: str) -> bool:
    """Whether a metric depends on a toxicity scorer."""
    return any(b.scored and name in (f.name for f in b.metrics) for b in suite.ALL)


def _incomparable(scored: bool, new: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Why two results cannot be compared; "" if they can."""
    if not scored:
        return ""
    same = ("kind", "weights", "label", "probability")
    ours, theirs = ([(r["scorer"] or {}).get(k) for k in same] for r in (new, base))
    if ours != theirs:
        return "the baseline's continuations were judged by another scorer"
    generation = ("temperature", "max_new_tokens")
    if any(new["settings"].get(k) != base["settings"].get(k) for k in generation):
        return "the baseline's continuations were generated with other settings"
    return ""


def shown(metric: Mapping[str, Any]) -> str:
    """A metric with its interval: 37.67 (35.20 to 40.14)."""
    return f"{metric['value']:.2f} ({metric['low']:.2f} to {metric['high']:.2f})"


def record(gate: Gate, path: Path, checks: Sequence[GateCheck]) -> dict[str, Any]:
    """The gate's entry in the result."""
    return {
        "file": path.name,
        "sha256": files.sha256_file(path),
        "baseline": gate.baseline,
        "passed": all(c.passed for c in checks),
        "checks": [c.json() for c in checks],
    }
