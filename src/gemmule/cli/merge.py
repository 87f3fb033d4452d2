"""gemmule merge and warp."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule import shell
from gemmule.cli.app import POST_TRAIN, command, stoppable
from gemmule.cli.options import AsJson, ConfigFile, Out, Overrides, Resume
from gemmule.config import ModelName, expand_model
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.posttrain.merging.warp import WarpConfig
    from gemmule.train.config import RunConfig


@command(POST_TRAIN)
def merge(
    models: Annotated[list[str], typer.Argument(help="Runs, HF folders or hub ids.")],
    out: Out,
    method: Annotated[
        str, typer.Option(help="average, lerp (a weighted average) or slerp.")
    ] = "average",
    base: Annotated[
        ModelName | None, typer.Option(help="Model that all of them were fine-tuned from.")
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Weight of a model; once for each, in their order."),
    ] = None,
    eta: Annotated[
        float, typer.Option(help="How far to go from the base to the merge, 0 to 1 (LITI).")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Merge fine-tunes of one base, layer by layer: average, LERP, SLERP or LITI.

    With a base, the angles between what the models learned are printed for each layer. A stopped
    merge leaves nothing and starts from the beginning.

    Example: gemmule merge runs/a runs/b --base runs/sft --method slerp --out runs/merged
    """
    from gemmule.posttrain.merging.coefficients import checked_method
    from gemmule.posttrain.merging.merge import merge as run

    with stoppable("nothing was written"):
        result = run(
            [expand_model(model) for model in models],
            out,
            base=base,
            method=checked_method(method),
            weights=weights,
            eta=eta,
        )
    _show(result, out, as_json)


@command(POST_TRAIN)
def warp(
    out: Out,
    config: ConfigFile = None,
    runs: Annotated[int | None, typer.Option(help="Runs of an iteration (2).")] = None,
    iterations: Annotated[int | None, typer.Option(help="Iterations (2).")] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="How far the next iteration starts on the way to the merge (0.3)."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="How runs are merged: slerp, lerp or average (slerp).")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train several runs from one start, merge them by SLERP, and start again: WARP.

    The config is that of a training run, with a model in model.init. The runs differ in their
    seeds only.

    Example: gemmule warp configs/rloo-1m.toml --set model.init=runs/sft --set
    data.path=runs/rloo/data --runs 2 --out runs/warp
    """
    from gemmule.console import console

    given = {"runs": runs, "iterations": iterations, "eta": eta, "method": method}
    given = {name: value for name, value in given.items() if value is not None}
    settings, loop = _settings(config, overrides or [], given, out, resume)
    how = "the same command with --resume continues from the last saved step"
    with stoppable(how, "warp", out):
        from gemmule.evals.memorization.callback import memorization_probe
        from gemmule.posttrain.merging.warp import warp as run

        result = run(
            settings, loop, out, resume=resume, stage=console.print,
            make_probes=[memorization_probe],
        )  # fmt: skip
    _show(result, out, as_json)


def _settings(
    config: Path | None,
    overrides: list[str],
    given: Mapping[str, object],
    out: Path,
    resume: bool,
) -> "tuple[RunConfig, WarpConfig]":
    from gemmule.posttrain.merging.warp import WarpConfig, read_settings
    from gemmule.train.config import load_run_config

    if not resume:
        return load_run_config(config, overrides), WarpConfig.parse(given, "options")
    if config or overrides or given:
        raise ConfigError("--resume continues with the saved settings: give only --out")
    return read_settings(out)


def _show(result: dict[str, object], out: Path, as_json: bool) -> None:
    from gemmule.console import next_commands, table
    from gemmule.posttrain.merging.merge import describe

    if as_json:
        print(json.dumps(result))
        return
    rows = describe(result)
    if rows:
        table(["layer", "lengths", "angles", "merged"], rows, title="task vectors")
    next_commands(shell.command("chat", out), shell.command("card", out))
