"""gemmule quickstart."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from gemmule import shell
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
    chat: Annotated[
        bool, typer.Option("--chat", help="Go on from a finished one: tune its student to answer.")
    ] = False,
    resume: Resume = False,
) -> None:
    """Distill a small model from text: corpus, tokenizer, teacher, student, comparison, card.

    With --chat it goes on from there, to a student that answers questions in turns.

    Example: gemmule quickstart --minutes 10 --data ~/notes
    """
    if chat:
        _chat(settings, out, resume)
        return
    from gemmule.quickstart import QuickstartConfig, run_quickstart

    values = settings.given()
    if settings.data is not None:
        values["data"] = settings.data.absolute()
    config = QuickstartConfig.parse(values)
    with stoppable("the same command with --resume continues from there", "quickstart", out):
        run_quickstart(config, out, resume=resume)


def _chat(settings: Quickstart, out: Path, resume: bool) -> None:
    """Goes on from the finished quickstart in `out`."""
    from gemmule.errors import ConfigError
    from gemmule.posttrain.chat_quickstart import ChatConfig, run_chat
    from gemmule.runs.layout import ChatLayout

    values, default = settings.given(), Quickstart()
    for name in sorted(values.keys() - ChatConfig.model_fields.keys()):
        if values[name] != getattr(default, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is decided by the quickstart that --chat goes on "
                "from: leave it out"
            )
    config = ChatConfig.parse({k: v for k, v in values.items() if k in ChatConfig.model_fields})
    continued = shell.command("quickstart", "--chat", "--resume", "--out", out)
    started = ChatLayout.of(out).config
    with stoppable(f"continue with {continued}" if started.is_file() else "nothing was begun"):
        run_chat(config, out, resume=resume)
