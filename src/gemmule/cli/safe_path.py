"""`python -m gemmule.cli` does not import from the current folder, as the installed command.

Python puts the current folder first on the path then: a file json.py or types.py in it would take
the place of the module of that name. To be imported before anything else is.
"""

import sys


def _run_as_module() -> bool:
    options = sys.orig_argv
    return "-m" in options[:-1] and options[options.index("-m") + 1].startswith("gemmule.")


# While Python looks for the module, argv[0] is "-m" and the current folder is there.
if sys.argv[:1] == ["-m"] and _run_as_module() and not sys.flags.safe_path:
    del sys.path[0]
