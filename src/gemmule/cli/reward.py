"""gemmule reward: reward models."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gemmule import shell
from gemmule.cli.app import POST_TRAIN, command, stoppable
from gemmule.cli.options import AsJson, ConfigFile, Out, Overrides, Resume
from gemmule.cli.post_training import StartAndData, new_run
from gemmule.cli.train import run_settings
from gemmule.errors import ConfigError

_RULES = {"shorter": "the shorter answer", "refusal": "words of a refusal"}


@command(POST_TRAIN)
def reward(
    out: Out,
    start: StartAndData,
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a reward model on pairs: a better and a worse answer to the same prompt.

    It is measured on held-out pairs, alongside rules that do not read the answers.

    Example: gemmule reward configs/reward-1m.toml --model runs/sft --file pairs.jsonl --out
    runs/reward
    """
    from gemmule.console import next_commands, table
    from gemmule.posttrain.chat_data import prepare_pairs
    from gemmule.train.run import run_training

    chosen = list(overrides or [])
    if resume:
        if start.given():
            raise ConfigError("--resume continues with the run's saved settings: give only --out")
        settings = run_settings(config, chosen, out, resume)
    else:
        settings = new_run("reward", config, chosen, start, out, lambda _: prepare_pairs)
    with stoppable(
        "the same command with --resume continues from the last saved step", "reward", out
    ):
        result = run_training(settings, out, resume=resume)
    if as_json:
        print(json.dumps(result))
    else:
        headers = ["decided by", "right, %", "lead of the model"]
        table(headers, list(_rows(result)), title=f"{out}: held-out pairs")
        next_commands(
            shell.command("align", "--method", "rloo", "--reward", out, "--model", "MODEL",
                          "--file", "PROMPTS", "--out", "OUT")
        )  # fmt: skip


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The model, and each rule with the model's lead over it."""
    yield "reward model", _percent(result["accuracy"]), ""
    for name, values in result["rules"].items():
        yield _RULES[name], _percent(values["accuracy"]), _points(values["difference"])


def _points(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(estimate: Mapping[str, float]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
