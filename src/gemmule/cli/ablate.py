"""gemmule ablate."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import RERUN, TRAIN, command, stoppable
from gemmule.cli.options import AsJson, OptionalData, Options, Overrides
from gemmule.config import ModelName
from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Options):
    """Scale of the sweep (SweepConfig)."""

    sources: Annotated[
        list[Path] | None, typer.Option("--source", help="Folder of 'mixture'; give two or more.")
    ] = None
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weights of 'mixture', such as 3:1; give several, or none for a grid."),
    ] = None
    teacher: Annotated[
        ModelName | None, typer.Option(help="Teacher; default: one is trained first.")
    ] = None
    teacher_size: Annotated[
        str | None, typer.Option(help="Model size of a teacher that is trained.")
    ] = None
    teacher_tokens: Annotated[
        int | None, typer.Option(help="Training tokens of a teacher that is trained.")
    ] = None
    student: Annotated[str | None, typer.Option(help="Model size of the student.")] = None
    largest: Annotated[str, typer.Option(help="Largest model from scratch of 'size'.")] = "3m"
    seeds: Annotated[int, typer.Option(help="Seeds per variant.")] = 3
    tokens: Annotated[int, typer.Option(help="Training tokens of each student.")] = 300_000
    online: Annotated[
        bool, typer.Option("--online", help="Run the teacher online instead of recording it.")
    ] = False


@command(TRAIN)
def ablate(
    ablation: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of an ablation; list prints them.")
    ],
    *,
    data: OptionalData = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, or of a sweep to continue.")
    ] = None,
    sweep: Sweep,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Repeat an ablation of the technical report at your scale, over several seeds.

    Table, plot and page with means and intervals go to the folder. The same command continues a
    stopped sweep and retries failed runs. The exit status is 1 if runs failed.

    Example: gemmule ablate size --data runs/data --out runs/ablate-size

    distilled  distilled against from scratch (report, table 6)
    size       the gap by student size, and the size factor (table 7)
    heads      grouped-query against multi-head attention (table 8)
    depth      deep against wide (table 9)
    window     smaller sliding windows at inference (table 10)
    loss       divergences, temperature, weight of the next-token loss
    teacher    size of the teacher
    targets    ways to store the teacher's predictions, by bytes per token
    induction  does the model copy from its context
    routing    train on the text where the teacher is uncertain
    mixture    weights of several data folders, by the validation loss on each
    """
    from gemmule.ablate.ablations import find, listing
    from gemmule.console import console, key_values, table

    if ablation == "list":
        rows = listing()
        if as_json:
            print(json.dumps([dict(zip(("name", "title", "table"), r, strict=True)) for r in rows]))
        else:
            key_values([(name, f"{title} ({where})") for name, title, where in rows])
        return
    find(ablation)
    given = sweep.given()
    if ablation == "mixture" and given.get("sources"):
        if data is not None:
            raise ConfigError("gemmule ablate mixture reads its --source folders: leave out --data")
        data = given["sources"][0]
    if data is None or out is None:
        needed = "--source, two or more folders" if ablation == "mixture" else "--data, a folder"
        raise ConfigError(
            f"gemmule ablate {ablation} needs {needed} made by gemmule data, and --out, a folder "
            "to write"
        )
    from gemmule.ablate.config import SweepConfig, given_settings, parsed_weights

    settings = given_settings(overrides or [], data)
    if "weights" in given:
        given["weights"] = tuple(parsed_weights(text) for text in given["weights"])
    values = {"ablation": ablation, "data": data, **given, "settings": settings}
    config = SweepConfig.parse(values, "ablate")
    with stoppable(RERUN):
        from gemmule.ablate.page import factor_table, failures, summary_table, verdicts
        from gemmule.ablate.run_sweep import run_ablation

        results = run_ablation(config, out)
    if as_json:
        print(json.dumps(results))
    else:
        table(*summary_table(results, brief=True), title=results["title"])
        if results["size_factors"]:
            table(*factor_table(results), title="size factor")
        for line in [*verdicts(results), *(f"failed: {f}" for f in failures(results))]:
            console.print(line, markup=False)
        console.print(f"page: {out / 'README.md'}", markup=False)
    if results["failed"]:
        raise typer.Exit(1)
