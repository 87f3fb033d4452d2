"""gemmule plan."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from gemmule.cli.app import TRAIN, command, stoppable
from gemmule.cli.options import AsJson, Country, OptionalData, Options, Overrides
from gemmule.config import ModelName
from gemmule.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)(?:e(\d{1,2}))?([kmbt]?)", re.IGNORECASE)


def count(text: str) -> int:
    """A number of tokens: 1000000, 13e12, 500M, 2B or 13T."""
    match = _COUNT.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of tokens: write 1000000, 500M or 13T")
    number, exponent, unit = match.groups()
    whole, _, decimals = number.partition(".")
    value = int(whole + decimals) * 10 ** int(exponent or 0) * _UNITS[unit.lower()]
    tokens, rest = divmod(value, 10 ** len(decimals))
    if rest:
        raise typer.BadParameter(f"{text!r} is not a whole number of tokens: write 1500000 or 1.5M")
    return tokens


Tokens = Annotated[
    int | None,
    typer.Option(
        parser=count,
        metavar="COUNT",
        help="Training tokens, as 500M; default: 20 per parameter.",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned(Options):
    """Settings of a plan."""

    student: Annotated[ModelName, typer.Option(help="Preset, or run or model folder.")]
    teacher: Annotated[
        ModelName | None,
        typer.Option(help="Preset, or run or model folder; required without --cluster."),
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary size of presets, if there is no data yet.")
    ] = None
    tokens: Tokens = None
    seq_len: Annotated[
        int | None,
        typer.Option(help="Tokens per sequence; default: 256 here, the context on a cluster."),
    ] = None
    country: Country = None
    max_wh: Annotated[
        float | None, typer.Option(help="Find the best loss for this energy, in watt-hours.")
    ] = None
    max_gco2e: Annotated[
        float | None, typer.Option(help="Find the best loss for this carbon, in grams of CO2e.")
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedHere(Options):
    """Settings of a plan for this machine (PlanRequest)."""

    data: OptionalData = None
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of --tokens.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step; default: 8.")] = None
    overrides: Overrides = None
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Finished run or quickstart to fit the scaling law to; repeatable."),
    ] = None
    students: Annotated[
        int | None,
        typer.Option(help="Number of students that share one recorded teacher; default: 1."),
    ] = None
    teacher_tokens: Annotated[
        int | None,
        typer.Option(help="Training tokens of a preset teacher; default: 20 per parameter."),
    ] = None
    nproc: Annotated[
        int | None,
        typer.Option(help="Number of processes of this machine that would share each batch."),
    ] = None
    calibration_seconds: Annotated[
        float | None, typer.Option(help="Maximum duration of the measurements; default: 60.")
    ] = None

    def assignments(self, planned: Planned) -> list[str]:
        """As gemmule train --set takes them."""
        settings = [
            f"data.batch_size={8 if self.batch_size is None else self.batch_size}",
            f"data.seq_len={256 if planned.seq_len is None else planned.seq_len}",
            *(self.overrides or []),
        ]
        if planned.country:
            settings.append(f"runtime.country={json.dumps(planned.country)}")
        return settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedElsewhere(Options):
    """Settings of a plan for a cluster (ClusterRequest)."""

    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICExCOUNT",
            help="Plan for other machines, as in h100x512.",
        ),
    ] = None
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            parser=count, metavar="COUNT",
            help="Tokens per step on a cluster; default: for 100,000 steps, from 0.5M to 16M.",
        ),
    ] = None  # fmt: skip
    dtype: Annotated[
        str | None,
        typer.Option(help="Matrix products on a cluster: bfloat16 (default), float8 or float32."),
    ] = None
    pue: Annotated[
        float | None,
        typer.Option(help="Energy of a cluster's building over its machines'; default: 1.1."),
    ] = None


@command(TRAIN)
def plan(
    planned: Planned, here: PlannedHere, elsewhere: PlannedElsewhere, as_json: AsJson = False
) -> None:
    """Predict what training and distilling take: memory, disk, time, energy, carbon and loss.

    Measures this machine for up to a minute; --set takes the settings of gemmule train. With
    --cluster, predicts a run on machines that are not at hand, from published runs.

    Example: gemmule plan --teacher runs/quickstart/teacher --student 1m --data runs/quickstart/data
    --runs runs/quickstart --tokens 1000000
    """
    if elsewhere.cluster is not None:
        _refuse(here, "is for plans of this machine: leave it out with --cluster")
        _plan_cluster({**planned.given(), **elsewhere.given()}, as_json)
        return
    _refuse(elsewhere, "is for plans of a cluster: give --cluster, or leave it out")
    if planned.teacher is None:
        raise ConfigError("--teacher is required without --cluster: a preset, or a folder")
    _plan_here(planned, here, as_json)


def _refuse(options: Options, why: str) -> None:
    for name in options.given():
        option = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
        raise ConfigError(f"{option} {why}")


def _plan_here(planned: Planned, here: PlannedHere, as_json: bool) -> None:
    from gemmule.console import console
    from gemmule.plan.forecast import make_plan
    from gemmule.plan.settings import PlanRequest
    from gemmule.plan.tables import show

    values = {**planned.given(), **here.given(), "settings": here.assignments(planned)}
    for name in ("seq_len", "country", "batch_size", "overrides"):  # in the settings
        values.pop(name, None)
    request = PlanRequest.parse(values, source="plan")
    with stoppable("nothing was written"):
        console.print(f"measuring for up to {request.calibration_seconds:.0f} s", style="dim")
        result = make_plan(request, lambda what: console.print(f"measured: {what}", style="dim"))
    if as_json:
        print(json.dumps(result))
    else:
        show(result)


def _plan_cluster(values: dict[str, Any], as_json: bool) -> None:
    from gemmule.plan.cluster.forecast import plan_cluster
    from gemmule.plan.cluster.plan_tables import show_cluster_plan
    from gemmule.plan.cluster.request import ClusterRequest

    result = plan_cluster(ClusterRequest.parse(values, source="plan"))
    if as_json:
        print(json.dumps(result))
    else:
        show_cluster_plan(result)
