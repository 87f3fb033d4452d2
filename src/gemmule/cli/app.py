"""The application, how commands are added to it, and what several of them do the same way."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from gemmule import shell
from gemmule.cli.metering import metered
from gemmule.cli.options import expand
from gemmule.errors import Interrupted
from gemmule.runs.layout import RunLayout

RERUN = "the same command continues from there"  # for stoppable

# Headings of `gemmule --help`, in its order.
START, DATA, TRAIN, POST_TRAIN = "Start", "Data", "Train and distill", "Post-train"
RUN, CHECKPOINTS, EVALUATE = "Run", "Checkpoints", "Evaluate and report"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, distill, run, evaluate and publish small Gemma 2 models on your own machine.",
)


def command(
    heading: str,
    name: str | None = None,
    to: typer.Typer = app,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function as a command; its parameters are its options, groups of them included.

    Args:
        heading: where `gemmule --help` lists it.
        name: the command's name where it is not the function's.
        to: the application or group of commands.
        settings: how its words are parsed (click's context_settings).
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        parsed = None if settings is None else dict(settings)
        add_to = to.command(name, rich_help_panel=heading, context_settings=parsed)
        add_to(expand(metered(function)))
        return function

    return add


@contextmanager
def stoppable(
    how: str, verb: str = "", out: Path = Path(), nproc: int | None = 1
) -> Iterator[None]:
    """Turns a Ctrl-C that nothing below handled into a message that says how to continue.

    Args:
        how: what continues, or what is left.
        verb: the command that takes --resume, if any; it is printed once there is a run to resume.
        out: folder of that run.
        nproc: processes of this machine that the run has; None: it has several machines.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {how}{_resume(verb, out, nproc)}") from None
    except Interrupted as e:
        raise Interrupted(f"{e}{_resume(verb, out, nproc)}") from None


def _resume(verb: str, out: Path, nproc: int | None) -> str:
    if not verb or not RunLayout(out).config.is_file():
        return ""
    processes = () if nproc in (1, None) else ("--nproc", str(nproc))
    again = shell.command(verb, "--resume", *processes, "--out", out)
    return f": {again}{', under torchrun as before' if nproc is None else ''}"
