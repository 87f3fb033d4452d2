"""Prints what the parity tests measured when they are done."""

import pytest
from parity_figures import Figures

FIGURES = pytest.StashKey[Figures]()


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Figures:
    return request.config.stash.setdefault(FIGURES, Figures())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    found = config.stash.get(FIGURES, None)
    if found is not None and found.rows:
        terminalreporter.section("parity")
        for line in found.table():
            terminalreporter.write_line(line)
