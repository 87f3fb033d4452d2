"""Settings of post-training runs are known to whatever reads a run's settings."""

import subprocess
import sys

import pytest

# Each in a process of its own: here other tests have registered the kinds.
ASK = """
import sys
from gemmule.errors import ConfigError
from gemmule.train.config import load_run_config
try:
    config = load_run_config(None, ["steps=1", "data.path=x", *sys.argv[1:]])
    print(config.objective.kind, "gemmule.posttrain.kinds" in sys.modules)
except ConfigError as e:
    print(e)
"""


def ask(*settings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK, *settings], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("kind", ["sft", "preference", "reward"])
def test_a_kind_is_registered_when_settings_name_it(kind: str) -> None:
    assert ask(f"objective.kind={kind}") == f"{kind} True"


def test_pretraining_needs_no_other_kind() -> None:
    assert ask() == "pretrain False"


def test_mistakes_name_every_kind() -> None:
    assert "did you mean 'reward'?" in ask("objective.kind=rewards")
    assert "required: one of pretrain, distill, sft, opd" in ask("objective.alpha=0.5")
    refusal = ask("objective.kind=pretrain", 'objective.method="dpo"')
    assert "objective.method is a setting of kind 'preference'" in refusal
