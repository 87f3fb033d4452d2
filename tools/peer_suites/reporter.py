"""A plugin of pytest for the peers' suites: writes what became of each test, as lines of JSON.

It runs in the suites' environment and imports nothing of gemmule.
"""

import json
import os
import sys
from pathlib import Path

import pytest

REPORT = Path(os.environ["PEER_SUITES_REPORT"])
# Patterns that only the text of a peer's own model matches: any text will do for them.
ANY_TEXT = json.loads(os.environ.get("PEER_SUITES_ANY_TEXT", "[]"))


def pytest_collection() -> None:
    """Replaces the comparison of texts before the test files import it."""
    utils = sys.modules.get("utils")
    compare = getattr(utils, "match_regex", None)
    if utils is not None and compare is not None:
        utils.match_regex = lambda regex, text: regex in ANY_TEXT or compare(regex, text)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes one line: of the test itself, or of a fixture that failed."""
    if report.when != "call" and report.passed:
        return
    message = ""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash else str(report.longrepr)
    elif report.skipped and isinstance(report.longrepr, tuple):
        message = report.longrepr[2]
    line = json.dumps({"test": report.nodeid, "outcome": report.outcome, "message": message})
    with REPORT.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
