"""gemmule quickstart."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from gemmule.cli.app import START, command, stoppable
from gemmule.cli.options import CorpusLicence, CorpusName, Country, Field, Options, Out, Resume


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quickstart(Options):
    """Settings of a quickstart (QuickstartConfig)."""

    minutes: Annotated[float, typer.Option(help="Approximate duration in minutes.")] = 10.0
    data: Annotated[
        Path | None,
        typer.Option(help="File, folder or glob of text; default: Python's standard library."),
    ] = None
    field: Field = None
    name: CorpusName = None
    licence: CorpusLicence = None
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and samples.")] = 0
    teacher: Annotated[
        str | None, typer.Option(help="Model preset of the teacher; default: by --minutes.")
    ] = None
    student: Annotated[
        str | None, typer.Option(help="Model preset of the student; default: by --minutes.")
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="Vocabulary size (4096); smaller for a small corpus.")
    ] = None
    country: Country = None


@command(START)
def quickstart(
    settings: Quickstart,
    out: Out = Path("runs/quickstart"),
    resume: Resume = False,
) -> None:
    """Distill a small model from text: corpus, tokenizer, teacher, student, comparison, card.

    Example: gemmule quickstart --minutes 10 --data ~/notes
    """
    from gemmule.quickstart import QuickstartConfig, run_quickstart

    values = settings.given()
    if settings.data is not None:
        values["data"] = settings.data.absolute()
    config = QuickstartConfig.parse(values)
    with stoppable("the same command with --resume continues from there", "quickstart", out):
        run_quickstart(config, out, resume=resume)
