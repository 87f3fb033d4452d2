"""The application, how commands are added to it, and what several of them do the same way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from gemmule.cli.options import expand
from gemmule.errors import Interrupted

RERUN = "the same command continues from there"  # for stoppable

# Headings of `gemmule --help`, in its order.
START, DATA, TRAIN = "Start", "Data", "Train and distill"
RUN, CHECKPOINTS, EVALUATE = "Run", "Checkpoints", "Evaluate and report"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, distill, run, evaluate and publish small Gemma 2 models on your own machine.",
)


def command(
    heading: str, name: str | None = None, to: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function as a command; its parameters are its options, groups of them included.

    Args:
        heading: where `gemmule --help` lists it.
        name: the command's name where it is not the function's.
        to: the application or group of commands.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        to.command(name, rich_help_panel=heading)(expand(function))
        return function

    return add


@contextmanager
def stoppable(how: str) -> Iterator[None]:
    """Turns a Ctrl-C that nothing below handled into a message that says how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {how}") from None
