"""`python -m gemmule` does not import from the current folder, as the installed command does not.

Python puts the current folder first on the path then: a file json.py or types.py in it would take
the place of the module of that name. To be imported before anything else is.
"""

import contextlib
import os
import sys


def _run_as_module() -> bool:
    options = sys.orig_argv
    module = options[options.index("-m") + 1] if "-m" in options[:-1] else ""
    return module.partition(".")[0] == "gemmule" and not sys.flags.safe_path


with contextlib.suppress(OSError):  # the current folder is gone
    if _run_as_module() and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        del sys.path[0]
