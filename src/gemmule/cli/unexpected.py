"""One line on an exception that no command expects: a user never sees a traceback unasked."""

import sys
import traceback
from pathlib import Path

from gemmule.errors import UserError, first_line
from gemmule.runtime.shortage import explain_shortage

TRACEBACK = "GEMMULE_TRACEBACK"  # environment variable
_PACKAGE = Path(__file__).parents[1]


def explain(e: Exception) -> tuple[str, int]:
    """The message and the exit status for an exception that reached the command line."""
    shortage = explain_shortage(e)
    if shortage is not None:
        return shortage, 1
    if isinstance(e, UnicodeEncodeError) and e.encoding == sys.getfilesystemencoding():
        return (
            f"file names cannot be written in the encoding of this locale, {e.encoding}: set "
            "LC_ALL=C.UTF-8"
        ), 2
    if isinstance(e, OSError) and e.filename is not None:
        name = e.filename if e.filename2 is None else f"{e.filename} -> {e.filename2}"
        return str(UserError(f"{name}: {e.strerror or first_line(e)}")), 2
    what = str(UserError(f"{type(e).__name__}{_place(e)}: {first_line(e)}"))
    return f"unexpected {what} (for the traceback, set {TRACEBACK}=1)", 1


def _place(e: Exception) -> str:
    """The last line of gemmule's own that was running."""
    for frame in reversed(traceback.extract_tb(e.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            return f" in {path.relative_to(_PACKAGE.parent)}:{frame.lineno}"
    return ""
