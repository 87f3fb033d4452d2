"""The command line, one module per noun; a command imports what it needs when it runs.

So that `gemmule --help` answers at once, no module here imports torch or the packages that do the
work at its top.
"""

import sys
from typing import Annotated, Any

import typer

# They add their commands, in the order that --help shows.
from gemmule.cli import quickstart, data, tokenizer, train, teachers  # noqa: F401  # isort: skip
from gemmule.cli import plan, ablate, infer, bench, doctor  # noqa: F401  # isort: skip
from gemmule.cli import checkpoints, eval, report  # noqa: F401  # isort: skip
from gemmule.cli.app import app
from gemmule.errors import GemmuleError, Interrupted


def _version(show: bool) -> None:
    if show:
        from gemmule import __version__

        print(f"gemmule {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    The exit status is 0, 2 for a mistake of the user's, 1 for any other error, 130 when stopped.
    """
    try:
        result: Any = app(arguments, standalone_mode=True)
    except GemmuleError as e:
        print(f"gemmule: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except SystemExit as e:  # Typer turns these two into an exit status itself
        if e.code == Interrupted.exit_code:  # Ctrl-C
            print("gemmule: stopped", file=sys.stderr)
        elif isinstance(e.__context__, BrokenPipeError):  # the reader (head, say) has closed
            raise SystemExit(0) from None
        raise
    raise SystemExit(result or 0)
