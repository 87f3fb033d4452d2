"""gemmule ledger and when: what a model cost, and when to start the next."""

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import EVALUATE, TRAIN, command
from gemmule.cli.options import AsJson
from gemmule.errors import CheckpointError, ConfigError


@command(EVALUATE)
def ledger(
    run: Annotated[Path, typer.Argument(help="Folder of a run, a quickstart, data or an export.")],
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with further runs, whose ledgers count too; repeatable."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File to draw the cost by stage into, .svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model cost, from its data and teacher to its last answer.

    Reads the ledgers of the folder, of what is in it and next to it. A teacher's cost is divided
    among the students that learned from it.

    Example: gemmule ledger runs/quickstart
    """
    from gemmule.runs.ledger.known import in_reach
    from gemmule.runs.ledger.summary import HEADERS, notes, rows
    from gemmule.runs.ledger.summary import as_json as to_json
    from gemmule.runs.ledger.walk import cost_at

    for folder in runs or []:
        if not folder.is_dir():
            raise ConfigError(f"--runs {folder} is not a folder: give one that holds runs")
    cost = cost_at(run, in_reach(run, runs or []))
    if cost is None:
        raise CheckpointError(
            f"{run} has no ledger.jsonl: give the folder of a run, or of anything else that a "
            "gemmule command has made since ledgers are kept"
        )
    if plot is not None:
        from gemmule.report.ledger_plot import write_plot

        write_plot(cost, plot)
    if as_json:
        print(json.dumps(to_json(cost)))
        return
    from gemmule.console import console, table

    table(HEADERS, rows(cost), title=str(run))
    for note in notes(cost):
        console.print(note, markup=False)


@command(TRAIN)
def when(
    grid: Annotated[
        Path, typer.Argument(help="CSV file of the grid's carbon intensity: time,gco2e_per_kwh.")
    ],
    hours: Annotated[float, typer.Option(help="How long the run will take.")],
    as_json: AsJson = False,
) -> None:
    """Say when to start a run, by the hours in which the grid emits least.

    Starts before now are left out; if the file has none later, all its hours are compared.

    Example: gemmule when grid.csv --hours 3
    """
    from gemmule.runs.emissions.hourly import HourlyGrid, best

    if not 0 < hours <= 24 * 366:
        raise ConfigError(f"--hours {hours:g}: give a number above 0, at most a year's")
    intensity, duration = HourlyGrid.read(grid), datetime.timedelta(hours=hours)
    now = datetime.datetime.now(datetime.UTC)
    windows = intensity.windows(duration, now) or intensity.windows(duration, intensity.first)
    if not windows:
        span = (intensity.last - intensity.first).total_seconds() / 3600
        raise ConfigError(f"{grid} covers {span:g} hours, less than --hours {hours:g}")
    chosen, first = best(windows), windows[0]
    worst = max(windows, key=lambda window: window.gco2e_per_kwh)
    result = {
        "start": chosen.start.isoformat(timespec="minutes"),
        "gco2e_per_kwh": chosen.gco2e_per_kwh,
        "first_start": {
            "start": first.start.isoformat(timespec="minutes"),
            "gco2e_per_kwh": first.gco2e_per_kwh,
        },
        "highest_gco2e_per_kwh": worst.gco2e_per_kwh,
    }
    if as_json:
        print(json.dumps(result))
        return
    print(
        f"start at {result['start']}: {chosen.gco2e_per_kwh:.4g} gCO2e/kWh over {hours:g} hours; "
        f"at {first.start.isoformat(timespec='minutes')} it is {first.gco2e_per_kwh:.4g}, and "
        f"{worst.gco2e_per_kwh:.4g} at worst"
    )
