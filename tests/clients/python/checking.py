"""Runs the checks of a client's script and prints how each went, as JSON.

Needs nothing but Python: it runs in the environment of each client.
"""

import importlib.metadata
import json
import os
import sys
import traceback
from collections.abc import Callable

URL = os.environ.get("GEMMULE_URL", "")
MODEL = os.environ.get("GEMMULE_MODEL", "")

# An object that even a model with random weights fills in within a few tokens.
SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"type": "string", "enum": ["red", "green"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["color", "number"],
    "additionalProperties": False,
}


def run(package: str, checks: dict[str, Callable[[], None]]) -> None:
    """Runs the checks and ends the process; its status is 1 if one has failed."""
    results = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc(limit=-3)
    version = importlib.metadata.version(package)
    print(json.dumps({"client": package, "version": version, "checks": results}))
    sys.exit(any(result != "passed" for result in results.values()))


def right(value: object) -> None:
    """Checks an object of SCHEMA."""
    assert isinstance(value, dict), value
    assert value["color"] in ("red", "green"), value
    assert value["number"] in range(10), value
    assert len(value) == 2, value
