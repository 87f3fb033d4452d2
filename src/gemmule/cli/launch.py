"""gemmule launch."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule import files
from gemmule.cli.app import TRAIN, app, command
from gemmule.cli.options import Options
from gemmule.cli.teachers import Extent, Targets, recording
from gemmule.cli.train import distillation
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.launch.request import LaunchRequest


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
    shared: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="gemmule's command, from its verb on.")
    ],
    script: Annotated[
        Path | None, typer.Option(help="File to write; default: standard output.")
    ] = None,
) -> None:
    """Print a script that trains, or records a teacher, on many machines.

    Starting it again continues the run. Its settings are checked here, before it waits in a queue.

    Example: gemmule launch --slurm --nodes 2 --nproc 8 --gpu any train configs/train-30m.toml
    --set data.path=runs/data --out runs/mine
    """
    from gemmule.launch.render import render
    from gemmule.launch.request import LaunchRequest

    given = _options(shared)
    values = {"scheduler": scheduler.chosen(), "command": shared, **machines.given()}
    request = LaunchRequest.parse({**values, "out": given["out"]}, source="launch")
    _check(request, given)
    text = render(request)
    if script is None:
        print(text, end="")
    else:
        files.write_text(script, text)


def _options(shared: list[str]) -> dict[str, Any]:
    """The options of the command that the processes share.

    Raises:
        ConfigError: when they could not share it, or could not start it again.
    """
    from gemmule.launch.request import CONTINUED_BY

    verb, *words = shared
    if verb not in CONTINUED_BY:
        *names, last = CONTINUED_BY
        raise ConfigError(
            f"gemmule {verb} does not run on many machines: {', '.join(names)} and {last} do"
        )
    if any(word.partition("=")[0] == "--nproc" for word in words):  # it starts processes at once
        raise ConfigError("give --nproc to gemmule launch, before the command")
    group: Any = typer.main.get_command(app)
    values: dict[str, Any] = group.commands[verb].make_context(f"gemmule {verb}", words).params
    if values.get("resume"):
        raise ConfigError("leave --resume out: the script continues the run where there is one")
    return values


def _check(request: "LaunchRequest", values: dict[str, Any]) -> None:
    """Refuses a command whose settings would be refused.

    Raises:
        UserError: as the command would.
    """
    from gemmule.train.config import load_run_config

    verb = request.command[0]
    if verb == "record":
        targets, extent = Targets.of(values), Extent.of(values)
        recording(values["teacher"], values["data"], targets, extent, values["overrides"])
        return
    chosen = list(values["overrides"] or [])
    if verb == "distill":
        chosen += distillation(values["teacher"], values["targets"], values["cross_tokenizer"])
    settings = load_run_config(values["config"], chosen)
    settings.shared_by(request.nodes * request.nproc)
