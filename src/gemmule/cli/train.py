"""gemmule train and distill."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule import shell
from gemmule.cli.app import RERUN, TRAIN, command, stoppable
from gemmule.cli.options import (
    AsJson,
    ConfigFile,
    Out,
    Overrides,
    Processes,
    Resume,
    ResumeIfStarted,
)
from gemmule.cli.processes import again_with, ranks, share_out
from gemmule.cli.teacher_text import TeacherText
from gemmule.config import ModelName
from gemmule.errors import ConfigError, decoded

if TYPE_CHECKING:
    from gemmule.train.config import RunConfig


@command(TRAIN)
def train(
    out: Out,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    resume_if_started: ResumeIfStarted = False,
    nproc: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Train a model as a config says; without a group objective, on next-token prediction.

    Example: gemmule train configs/train-1m.toml --set data.path=runs/data --out runs/mine
    """
    settings, resume = start_or_resume(config, overrides, out, resume, resume_if_started)
    train_model(settings, out, resume, as_json, nproc=nproc)


@command(TRAIN)
def distill(
    out: Out,
    text: TeacherText,
    config: ConfigFile = None,
    teacher: Annotated[ModelName | None, typer.Option(help="Teacher: run or HF folder.")] = None,
    targets: Annotated[
        Path | None,
        typer.Option(help="Folder made by gemmule record, in place of the teacher."),
    ] = None,
    cross_tokenizer: Annotated[
        bool,
        typer.Option(
            "--cross-tokenizer",
            help="The teacher has another tokenizer. Not shown to help: rather prepare the data "
            "with the teacher's own, trimmed (gemmule data --trim).",
        ),
    ] = False,
    overrides: Overrides = None,
    resume: Resume = False,
    resume_if_started: ResumeIfStarted = False,
    nproc: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Train a student to match its teacher's distribution, computed online or recorded.

    Example: gemmule distill configs/distill-1m.toml --teacher runs/big --set data.path=runs/data
    --out runs/small
    """
    chosen = distillation(teacher, targets, cross_tokenizer)
    if resume:
        chosen.pop()
    given = [*(overrides or []), *chosen]
    settings, resumed = start_or_resume(config, given, out, resume, resume_if_started)

    def prepare() -> None:
        if resumed and not resume:  # the run has begun with that text
            return
        with stoppable(RERUN):
            text.prepare(getattr(settings.objective, "teacher", None), settings.data.path)

    train_model(
        settings, out, resumed, as_json, prepare=prepare, prepared=text.names(), nproc=nproc
    )


def distillation(teacher: str | None, targets: Path | None, cross_tokenizer: bool) -> list[str]:
    """The options of gemmule distill as settings to override with, the run's kind at the end."""
    given = {"objective.teacher": teacher, "objective.targets": targets}
    chosen = [override(name, path) for name, path in given.items() if path]
    chosen += ["objective.cross_tokenizer=true"] if cross_tokenizer else []
    return [*chosen, 'objective.kind="distill"']


def override(key: str, value: object) -> str:
    """A setting to override with text, such as a path."""
    # Unescaped: JSON's escape of an emoji is two halves, which TOML refuses.
    return f"{key}={json.dumps(decoded(str(value)), ensure_ascii=False)}"


def start_or_resume(
    config: Path | None, overrides: Sequence[str] | None, out: Path, resume: bool, if_started: bool
) -> tuple["RunConfig", bool]:
    """The settings of a run, and whether to resume it.

    A process that torchrun or Slurm starts again with the same command goes on with its run.

    Args:
        config: file of settings.
        overrides: settings that win.
        out: folder of the run.
        resume: whether to continue the run there, of which nothing else is given.
        if_started: whether to continue it where there is one.

    Raises:
        UserError: when a setting is wrong, or the folder holds the run of other settings.
    """
    from gemmule.runs.layout import RunLayout
    from gemmule.runtime.world import restarted

    settings = run_settings(config, list(overrides or []), out, resume)
    if resume or not (if_started or restarted()) or not RunLayout(out).config.is_file():
        return settings, resume
    from gemmule.train.same_run import check_same_run

    check_same_run(settings, out)
    return run_settings(None, [], out, resume=True), True


def run_settings(config: Path | None, overrides: list[str], out: Path, resume: bool) -> "RunConfig":
    """The settings of a new run, or those that a stopped run saved, whatever its kind."""
    from gemmule.runs.run_dir import RunDir
    from gemmule.train.config import load_run_config

    if not resume:
        return load_run_config(config, overrides)
    if config or overrides:
        raise ConfigError("--resume continues with the run's saved settings: give only --out")
    return load_run_config(RunDir.open(out).layout.config)


def train_model(
    settings: "RunConfig",
    out: Path,
    resume: bool,
    as_json: bool,
    *,
    prepare: Callable[[], None] = lambda: None,
    prepared: Sequence[str] = (),
    nproc: int | None = None,
    further: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: (),
    chats: bool = False,
) -> None:
    """Trains, and says what came out; under torchrun as one of the ranks.

    Args:
        settings: settings of the run.
        out: its folder.
        resume: whether to continue the run there.
        as_json: whether to print the result as JSON.
        prepare: what the first rank does before.
        prepared: options that it has done with, which further processes do not get.
        nproc: processes to start in place of this one, once settings and data are there.
        further: further lines to print of the result.
        chats: whether the model answers in turns.
    """
    from gemmule.console import console, next_commands

    how = "the same command with --resume continues from the last saved step"
    with (
        ranks(settings.runtime.device) as world,
        stoppable(how, "train", out, again_with(world, nproc)),
    ):
        from gemmule.evals.memorization.callback import memorization_probe
        from gemmule.train.mixtures import open_data
        from gemmule.train.run import describe, run_training

        if world.first:
            prepare()

        def check(count: int) -> None:
            open_data(settings.data)
            settings.shared_by(count)

        share_out(nproc, world, check, prepared)
        probes = [memorization_probe]
        result = run_training(settings, out, resume=resume, make_probes=probes, world=world)
    if not world.first:
        return
    if as_json:
        print(json.dumps(result))
    else:
        for line in [describe(result), *further(result)]:
            console.print(line)
        talk = shell.command("chat", out) if chats else shell.command("generate", out, "The")
        next_commands(talk, shell.command("card", out))
