"""The command line, one module per noun; a command imports what it needs when it runs.

So that `gemmule --help` answers at once, no module here imports torch or the packages that do the
work at its top.
"""

from gemmule.cli import safe_path  # noqa: F401  # isort: skip

import os
import sys
from typing import Annotated

import typer

# They add their commands, in the order that --help shows.
from gemmule.cli import quickstart, data, data_export, quality, decontamination  # noqa: F401  # isort: skip
from gemmule.cli import tokenizer, train, teachers, launch  # noqa: F401  # isort: skip
from gemmule.cli import sft, reward, align, synthesize  # noqa: F401  # isort: skip
from gemmule.cli import gate, merge  # noqa: F401  # isort: skip
from gemmule.cli import plan, ablate, infer, serve, bench, doctor  # noqa: F401  # isort: skip
from gemmule.cli import tasks, checkpoints, eval, ledger, report  # noqa: F401  # isort: skip
from gemmule.cli.app import app
from gemmule.cli.processes import Replacement, print_error
from gemmule.cli.unexpected import TRACEBACK, explain
from gemmule.errors import ConfigError, GemmuleError, Interrupted
from gemmule.runtime import streams
from gemmule.runtime.signals import interruptible


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
    try:
        os.getcwd()  # noqa: PTH109 (what fails if not checked here, in libraries too)
    except OSError as e:
        raise ConfigError(
            f"the current folder cannot be used ({e.strerror}): has it been deleted? "
            "cd to another one"
        ) from None


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    The exit status is 0, 2 for a mistake of the user's, 1 for any other error, 130 when stopped.
    """
    streams.prepare()
    try:
        with interruptible():
            code = _run(arguments)
            sys.stdout.flush()  # what it still holds may meet a full disk
    except Replacement as e:
        sys.stdout.flush()
        e.start()
    except BrokenPipeError:  # the reader (head, say) has closed
        code = 0
    except KeyboardInterrupt:
        code = _failed("stopped", Interrupted.exit_code)
    except GemmuleError as e:
        code = _failed(str(e), e.exit_code)
    except Exception as e:
        if os.environ.get(TRACEBACK):
            raise
        code = _failed(*explain(e))
    raise SystemExit(code)


def _run(arguments: list[str] | None) -> int:
    try:
        app(arguments, standalone_mode=True)
    except Replacement:
        raise
    except SystemExit as e:
        if isinstance(e.__context__, BrokenPipeError):
            raise e.__context__ from None
        if e.code == Interrupted.exit_code:  # how Typer ends after Ctrl-C
            raise KeyboardInterrupt from None
        return int(e.code or 0)
    return 0


def _failed(message: str, code: int) -> int:
    print_error(message)
    return code
