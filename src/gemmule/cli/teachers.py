"""gemmule teacher-check, record and verify: a teacher, and logit stores of it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmule.cli.app import RERUN, TRAIN, command, stoppable
from gemmule.cli.options import AsJson, Data, Options, Out, Overrides, Processes
from gemmule.cli.processes import ranks, share_out
from gemmule.cli.teacher_text import TeacherText
from gemmule.config import ModelName

if TYPE_CHECKING:
    from gemmule.teachers.record_config import RecordConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets(Options):
    """What is kept of each of the teacher's distributions."""

    kind: Annotated[
        str, typer.Option(help="What to keep per token: sample, top_k, top_k_tail or top_p.")
    ] = "sample"
    draws: Annotated[int | None, typer.Option(help="sample: samples per token (50).")] = None
    k: Annotated[int | None, typer.Option(help="top_k, top_k_tail: token ids per token (32).")] = (
        None
    )
    p: Annotated[float | None, typer.Option(help="top_p: probability to reach (0.95).")] = None
    proposal: Annotated[
        float | None, typer.Option(help="sample: sample from the probabilities to this power (1).")
    ] = None
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the teacher's softmax (1).")
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extent(Options):
    """How much of the corpus is recorded."""

    tokens: Annotated[
        int | None, typer.Option(help="Number of tokens to record; a larger number appends.")
    ] = None
    seq_len: Annotated[int | None, typer.Option(help="Sequence length, in training too (256).")] = (
        None
    )
    part: Annotated[
        str | None, typer.Option(help="Record only this part, as in 2/4, next to other processes.")
    ] = None


def recording(
    teacher: str, data: Path, targets: Targets, extent: Extent, overrides: Sequence[str] | None
) -> "RecordConfig":
    """The settings of a recording, from the options of gemmule record."""
    from gemmule.config import assign
    from gemmule.teachers.record_config import RecordConfig

    values: dict[str, Any] = {
        "teacher": teacher, "data": data, "targets": targets.given(), **extent.given(),
    }  # fmt: skip
    return RecordConfig.parse(assign(values, overrides or []))


@command(TRAIN, "teacher-check")
def teacher_check(
    teacher: Annotated[
        ModelName, typer.Argument(help="Teacher: run, HF folder, GGUF file or hub id.")
    ],
    data: Data,
    tokens: Annotated[int | None, typer.Option(help="Number of tokens to predict (8192).")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Sequence length (256).")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a teacher knows a text, and how fast it is, before recording it.

    Example: gemmule teacher-check models/gemma-3-270m --data runs/data
    """
    from gemmule.config import assign
    from gemmule.console import key_values
    from gemmule.teachers.teacher_check import CheckConfig, check, describe

    given = {"tokens": tokens, "seq_len": seq_len}
    values = {"teacher": teacher, "data": data, **{k: v for k, v in given.items() if v is not None}}
    config = CheckConfig.parse(assign(values, overrides or []))
    with stoppable("nothing was changed"):
        report = check(config)
    if as_json:
        print(json.dumps(report))
    else:
        key_values(describe(report), title=teacher)


@command(TRAIN)
def record(
    teacher: Annotated[
        ModelName, typer.Argument(help="Teacher: run, HF folder, hub id, or address of a server.")
    ],
    data: Data,
    out: Out,
    targets: Targets,
    extent: Extent,
    text: TeacherText,
    overrides: Overrides = None,
    nproc: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Record a teacher's predictions on a corpus once, for any number of students.

    If it is stopped, the same command continues from there; with a larger --tokens it appends.
    Processes without a connection can record into one folder, each with its own --part.

    Example: gemmule record runs/big --data runs/data --out runs/targets
    """
    from gemmule.console import key_values
    from gemmule.teachers.record import describe, open_text
    from gemmule.teachers.record import record as run

    config = recording(teacher, data, targets, extent, overrides)
    with ranks(config.device) as world, stoppable(RERUN):
        if world.first:
            text.prepare(config.teacher, config.data)
        share_out(nproc, world, lambda _: open_text(config), text.names())
        result = run(config, out, world)
    if not world.first:
        return
    if as_json:
        print(json.dumps(result))
    else:
        key_values(describe(result), title=str(out))


@command(TRAIN)
def verify(
    store: Annotated[Path, typer.Argument(help="Folder made by gemmule record.")],
    teacher: Annotated[
        ModelName | None, typer.Option(help="Its teacher; default: where it was recorded from.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Its data; default: where it was recorded from.")
    ] = None,
    student: Annotated[
        ModelName | None,
        typer.Option(help="Model to measure gradients at; default: one equal to the teacher."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Number of tokens to run through the teacher again.")
    ] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses these tokens.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check a logit store for damage, faithfulness and truncation.

    The exit status is 1 if the store is not faithful to its teacher.

    Example: gemmule verify runs/targets
    """
    from gemmule.console import key_values
    from gemmule.teachers.verify_store import describe
    from gemmule.teachers.verify_store import verify as run

    with stoppable("nothing was changed"):
        report = run(
            store, teacher=teacher, data=data, student=student, tokens=tokens, seed=seed
        )  # fmt: skip
    if as_json:
        print(json.dumps(report))
    else:
        key_values(describe(report), title=str(store))
    if not report["ok"]:
        raise typer.Exit(1)
