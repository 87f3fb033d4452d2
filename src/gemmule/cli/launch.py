"""gemmule launch."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule import files
from gemmule.cli.app import TRAIN, app, command
from gemmule.cli.options import Options
from gemmule.cli.train import distillation
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.train.config import RunConfig

# Commands that train on several processes, and write a run that --resume continues.
_TRAINING = ("train", "distill")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduler(Options):
    """What starts the processes; exactly one."""

    slurm: Annotated[bool, typer.Option("--slurm", help="A script for sbatch.")] = False
    sky: Annotated[bool, typer.Option("--sky", help="A task for SkyPilot.")] = False
    kubeflow: Annotated[
        bool, typer.Option("--kubeflow", help="A TrainJob for Kubeflow Trainer v2.")
    ] = False

    def chosen(self) -> str:
        """The name of the scheduler."""
        names = [name for name, given in vars(self).items() if given]
        if len(names) != 1:
            raise ConfigError("give one of --slurm, --sky and --kubeflow")
        return names[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machines(Options):
    """What the run gets (LaunchRequest)."""

    nodes: Annotated[int | None, typer.Option(help="Machines; default: 1.")] = None
    nproc: Annotated[
        int | None, typer.Option(help="Processes per machine, one per GPU; default: 1.")
    ] = None
    gpu: Annotated[
        str | None, typer.Option(help="Type of GPU, or any; default: compute on CPUs.")
    ] = None
    cpus: Annotated[int | None, typer.Option(help="Cores per machine.")] = None
    memory: Annotated[int | None, typer.Option(help="GiB per machine.")] = None
    hours: Annotated[float | None, typer.Option(help="Time limit.")] = None
    name: Annotated[str | None, typer.Option(help="Name of the job.")] = None
    setup: Annotated[str | None, typer.Option(help="Shell line that each machine runs first.")] = (
        None
    )
    image: Annotated[str | None, typer.Option(help="Container image.")] = None
    volume: Annotated[
        str | None,
        typer.Option(metavar="SOURCE:/PATH", help="Shared storage: a bucket, or a claim's name."),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Further option of sbatch, as in partition=gpu; repeatable."),
    ] = None


@command(TRAIN, settings={"allow_interspersed_args": False})
def launch(
    scheduler: Scheduler,
    machines: Machines,
    training: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="gemmule's command, from its verb on.")
    ],
    script: Annotated[
        Path | None, typer.Option(help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Print a script that starts a training run on many machines, or continues it.

    Starting it again continues the run. Its settings are checked here, before it waits in a queue.

    Example: gemmule launch --slurm --nodes 2 --nproc 8 --gpu any train configs/train-30m.toml
    --set data.path=runs/data --out runs/mine
    """
    from gemmule.launch.render import render
    from gemmule.launch.request import LaunchRequest

    values = {"scheduler": scheduler.chosen(), "command": training, **machines.given()}
    settings, values["out"] = _checked(training)
    request = LaunchRequest.parse(values, source="launch")
    settings.shared_by(request.nodes * request.nproc)
    text = render(request)
    if script is None:
        print(text, end="")
    else:
        files.write_text(script, text)


def _checked(training: list[str]) -> "tuple[RunConfig, Path]":
    """The settings and the folder of the run that a command makes.

    Raises:
        ConfigError: when it is not a training command, or its settings would be refused.
    """
    from gemmule.train.config import load_run_config

    verb, *words = training
    if verb not in _TRAINING:
        raise ConfigError(
            f"gemmule {verb} does not run on many machines: {' and '.join(_TRAINING)} do"
        )
    if any(word.partition("=")[0] == "--nproc" for word in words):  # it starts processes at once
        raise ConfigError("give --nproc to gemmule launch, before the command")
    group: Any = typer.main.get_command(app)
    values = group.commands[verb].make_context(f"gemmule {verb}", words).params
    if values["resume"]:
        raise ConfigError("leave --resume out: the script continues the run where there is one")
    chosen = list(values["overrides"] or [])
    if verb == "distill":
        chosen += distillation(values["teacher"], values["targets"], values["cross_tokenizer"])
    return load_run_config(values["config"], chosen), values["out"]
