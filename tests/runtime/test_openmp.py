"""Threads that wait: set before torch is there, and only where the user has not decided."""

import os
import subprocess
import sys

import pytest

from gemmule.runtime import openmp


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_user_has_set_stays(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    monkeypatch.setattr(os, "environ", {**environment, **given})
    openmp.spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert os.environ.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


def test_the_command_line_sets_it_before_torch_is_imported() -> None:
    code = """
import os, sys
from gemmule import cli
def run(): print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
cli.main = run
from gemmule.__main__ import main
main()
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1000", "False"]
