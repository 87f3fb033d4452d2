"""The command line: one lazy verb per thing a user does; nothing heavy is imported for --help."""

import sys
from typing import Annotated, Any

import typer

# They add their verbs, in the order that --help shows.
from gemmule.cli import making, using, judging, benchmarks, memorization  # noqa: F401  # isort: skip
from gemmule.cli import safety  # noqa: F401  # isort: skip
from gemmule.cli.app import app
from gemmule.errors import GemmuleError, Interrupted


def _version(wanted: bool) -> None:
    if wanted:
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
    """Runs the command line; exits with 0, 2 (the user's mistake), 1 (ours) or 130 (stopped)."""
    try:
        result: Any = app(arguments, standalone_mode=True)
    except GemmuleError as e:
        print(f"gemmule: {e}", file=sys.stderr)
        raise SystemExit(e.exit_code) from None
    except SystemExit as e:  # by typer, which takes these two upon itself
        if e.code == Interrupted.exit_code:  # Ctrl-C
            print("gemmule: stopped", file=sys.stderr)
        elif isinstance(e.__context__, BrokenPipeError):  # the reader (head, say) has seen enough
            raise SystemExit(0) from None
        raise
    raise SystemExit(result or 0)
