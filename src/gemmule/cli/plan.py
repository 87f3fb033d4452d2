"""gemmule plan."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import TRAIN, command, stoppable
from gemmule.cli.options import AsJson, Country, OptionalData, Options, Overrides
from gemmule.config import ModelName


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned(Options):
    """Settings of a plan (PlanRequest)."""

    teacher: Annotated[ModelName, typer.Option(help="Preset, or run or model folder.")]
    student: Annotated[ModelName, typer.Option(help="Preset, or run or model folder.")]
    data: OptionalData = None
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary size of presets, if there is no data yet.")
    ] = None
    tokens: Annotated[
        int | None, typer.Option(help="Training tokens; default: 20 per parameter.")
    ] = None
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, in place of --tokens.")] = None
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Finished run or quickstart to fit the scaling law to; repeatable."),
    ] = None
    students: Annotated[
        int, typer.Option(help="Number of students that share one recorded teacher.")
    ] = 1
    teacher_tokens: Annotated[
        int | None,
        typer.Option(help="Training tokens of a preset teacher; default: 20 per parameter."),
    ] = None
    calibration_seconds: Annotated[
        float, typer.Option(help="Maximum duration of the measurements.")
    ] = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun(Options):
    """Settings of the planned training run."""

    batch_size: Annotated[int, typer.Option(help="Sequences per step.")] = 8
    seq_len: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256
    country: Country = None
    overrides: Overrides = None

    def assignments(self) -> list[str]:
        """As gemmule train --set takes them."""
        settings = [f"data.batch_size={self.batch_size}", f"data.seq_len={self.seq_len}"]
        settings += self.overrides or []
        country = [f"runtime.country={json.dumps(self.country)}"] if self.country else []
        return settings + country


@command(TRAIN)
def plan(planned: Planned, run: PlannedRun, as_json: AsJson = False) -> None:
    """Predict what training and distilling take here: memory, disk, time, energy and loss.

    Measures the machine for up to a minute. --set takes the settings of gemmule train.

    Example: gemmule plan --teacher runs/quickstart/teacher --student 1m --data runs/quickstart/data
    --runs runs/quickstart --tokens 1000000
    """
    from gemmule.console import console
    from gemmule.plan.forecast import make_plan
    from gemmule.plan.settings import PlanRequest
    from gemmule.plan.tables import show

    values = {**planned.given(), "settings": run.assignments()}
    request = PlanRequest.parse(values, source="plan")
    with stoppable("nothing was written"):
        console.print(f"measuring for up to {request.calibration_seconds:.0f} s", style="dim")
        result = make_plan(request, lambda what: console.print(f"measured: {what}", style="dim"))
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
