"""Commands as this program prints them: they can be pasted into the shell that started it."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(*words: str | Path) -> str:
    """A gemmule command with its arguments quoted for a POSIX shell.

    Args:
        words: the verb and its arguments; a path that begins with a dash is written as ./-name.
    """
    return " ".join([_program(), *(quoted(word) for word in words)])


def _program() -> str:
    """How to call this program again: as it was called, or shorter where that is the same."""
    script = Path(sys.argv[0])
    if script.name == "gemmule" and script.is_file():
        return "gemmule" if _is_on_path("gemmule", script) else quoted(script)
    if script.name == "__main__.py" and script.is_relative_to(Path(__file__).parent):
        python = Path(sys.executable)
        short = next((n for n in ("python", "python3") if _is_on_path(n, python)), python)
        return f"{quoted(short)} -m gemmule"
    return "gemmule"


def _is_on_path(name: str, program: Path) -> bool:
    """Whether the shell runs `program` by its name; links count, as each is a program of its own.

    (A virtual environment's python is a link to the one that made it.)
    """
    path = shutil.which(name)
    return path is not None and Path(path).absolute() == program.absolute()


def quoted(word: str | Path) -> str:
    """A word of a command, as `command` writes it."""
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    shown = (
        chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(text)
    )
    return f"$'{''.join(shown)}'"
