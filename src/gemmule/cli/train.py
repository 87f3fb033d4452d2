"""gemmule train and distill."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule.cli.app import TRAIN, command, stoppable
from gemmule.cli.options import (
    AsJson,
    ConfigFile,
    Out,
    Overrides,
    Resume,
)
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.train.config import TrainConfig


@command(TRAIN)
def train(
    out: Out,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on next-token prediction.

    Example: gemmule train configs/train-1m.toml --set data=runs/data --out runs/mine
    """
    from gemmule.train.config import TrainConfig

    _train(TrainConfig, out, config, overrides, resume, as_json)


@command(TRAIN)
def distill(
    out: Out,
    config: ConfigFile = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher: run or HF folder.")] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="Folder made by gemmule record, in place of the teacher."),
    ] = None,
    cross_tokenizer: Annotated[
        bool, typer.Option("--cross-tokenizer", help="The teacher has another tokenizer.")
    ] = False,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a student to match its teacher's distribution, computed online or recorded.

    Example: gemmule distill configs/distill-1m.toml --teacher runs/big --set data=runs/data
    --out runs/small
    """
    from gemmule.train.config import DistillConfig

    given = {"teacher": teacher, "targets": targets}
    chosen = [f"{name}={json.dumps(str(path))}" for name, path in given.items() if path]
    chosen += ["cross_tokenizer=true"] if cross_tokenizer else []
    values = [*(overrides or []), *chosen]
    _train(DistillConfig, out, config, values, resume, as_json)


def _train(
    kind: "type[TrainConfig]",
    out: Path,
    config: Path | None,
    overrides: list[str] | None,
    resume: bool,
    as_json: bool,
) -> None:
    from gemmule.console import console
    from gemmule.runs.run_dir import RunDir

    if resume:
        if config or overrides:
            raise ConfigError("--resume continues with the run's saved settings: give only --out")
        settings = _saved(RunDir.open(out).path / "config.toml")
    else:
        settings = kind.load(config, overrides or [])
    with stoppable("the same command with --resume continues from the last saved step"):
        from gemmule.evals.memorization.callback import memorization_probe
        from gemmule.train.run import describe, run_training

        result = run_training(settings, out, resume=resume, make_probes=[memorization_probe])
    if as_json:
        print(json.dumps(result))
    else:
        console.print(describe(result))
        console.print(f"next: gemmule generate {out} 'The'   gemmule card {out}")


def _saved(path: Path) -> "TrainConfig":
    """A run's settings; either verb goes on with whatever the run was."""
    from gemmule.train.config import DistillConfig, TrainConfig

    lines = path.read_text().splitlines()
    distilling = any(line.startswith(("teacher =", "targets =")) for line in lines)
    return (DistillConfig if distilling else TrainConfig).load(path)
