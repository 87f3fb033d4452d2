"""Settings of post-training runs are known to whatever reads a run's settings."""

import json
import subprocess
import sys

# In a process of its own: here other tests have registered the kinds.
ASK = """
import json, sys
from gemmule.errors import ConfigError
from gemmule.train.config import load_run_config
for settings in json.loads(sys.argv[1]):
    try:
        config = load_run_config(None, ["steps=1", "data.path=x", *settings])
        print(config.objective.kind, "gemmule.posttrain.kinds" in sys.modules)
    except ConfigError as e:
        print(e)
"""


def ask(*settings: list[str]) -> list[str]:
    """What a process prints of several groups of settings, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(settings)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_kinds_are_registered_when_settings_name_one() -> None:
    kinds = ("sft", "preference", "reward")
    first, *others = ask([], *([f"objective.kind={kind}"] for kind in kinds))
    assert first == "pretrain False"
    assert others == [f"{kind} True" for kind in kinds]


def test_mistakes_name_every_kind() -> None:
    foreign, missing, unknown = ask(
        ["objective.kind=pretrain", 'objective.method="dpo"'],
        ["objective.alpha=0.5"],
        ["objective.kind=rewards"],
    )
    assert "objective.method is a setting of kind 'preference'" in foreign
    assert "required: one of pretrain, distill, sft, opd" in missing
    assert "did you mean 'reward'?" in unknown
