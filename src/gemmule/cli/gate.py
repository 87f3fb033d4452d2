"""gemmule gate."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule import files
from gemmule.cli.app import POST_TRAIN, command, stoppable
from gemmule.cli.options import AsJson, Model, Overrides
from gemmule.cli.post_training import reward_weights
from gemmule.config import ModelName
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.data.dataset import Dataset
    from gemmule.posttrain.chat_data import ChatData
    from gemmule.runs.schema_evals import PromotionCheck

EXIT_CODE = 3  # as that of gemmule safety's gate


@command(POST_TRAIN)
def gate(
    candidate: Model,
    parent: Annotated[
        ModelName | None, typer.Option(help="Model to replace; default: what the run started from.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Chat data folder with held-out prompts; default: the run's own."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="What answers are worth, NAME or NAME=WEIGHT; repeatable."),
    ] = None,
    base_data: Annotated[
        Path | None, typer.Option(help="Folder made by gemmule data, of base text.")
    ] = None,
    safety_margin: Annotated[
        float | None,
        typer.Option(help="Compare both models' safety results; points that may be lost."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings and limits.")] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: evals/gates.json in the run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide whether a model may replace the one that it was made from.

    Both answer the same held-out prompts. Reward must rise; loss on base text, divergence, length,
    answers without an end and safety must stay within limits: by paired 95% intervals. The exit
    status is 3 if it may not.

    Example: gemmule gate runs/rl --reward number --base-data runs/data
    """
    from gemmule.console import console, table
    from gemmule.posttrain.gates.gate import GateConfig, describe
    from gemmule.posttrain.gates.gate import gate as run
    from gemmule.posttrain.rewards.by_name import open_rewards
    from gemmule.runs.lineage import start_of

    settings = GateConfig.load(config, overrides or [])
    before = parent or start_of(Path(candidate))
    if before is None:
        raise ConfigError(f"{candidate} does not say what it was made from: give --parent")
    scored = open_rewards(reward_weights(reward)) if reward else None
    more = [] if safety_margin is None else _safety(candidate, before, safety_margin)
    path = out or _default_file(candidate)
    with stoppable("nothing was written"):
        result = run(
            candidate,
            before,
            _chat_data(candidate, data),
            config=settings,
            reward=scored,
            base=None if base_data is None else _base(base_data),
            more=more,
            stage=console.print,
        )
        with files.writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        result.write(path)
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        table(["rule", "demands", "outcome", ""], describe(result), title=str(path))
        if result.not_checked:
            console.print(f"not checked: {', '.join(result.not_checked)}")
        verdict = "may replace" if result.passed else "is refused: it may not replace"
        console.print(f"{candidate} {verdict} {before}")
    if not result.passed:
        raise typer.Exit(EXIT_CODE)


def _default_file(candidate: str) -> Path:
    from gemmule.runs.layout import RunLayout

    run = RunLayout(Path(candidate))
    if not run.started:
        raise ConfigError(f"{candidate} is not a run, so the verdict needs a place: give --out")
    return run.gates


def _chat_data(candidate: str, data: Path | None) -> "ChatData":
    from gemmule.posttrain.chat_data import ChatData

    if data is None:
        from gemmule.runs.layout import RunLayout
        from gemmule.train.config import load_run_config

        settings = RunLayout(Path(candidate)).config
        if not settings.is_file():
            raise ConfigError(f"{candidate} does not say what data it was trained on: give --data")
        data = load_run_config(settings).data.path
    return ChatData.open(data)


def _base(path: Path) -> "Dataset":
    from gemmule.data.dataset import Dataset

    return Dataset.open(path)


def _safety(candidate: str, parent: str, margin: float) -> "list[PromotionCheck]":
    """Every safety metric of both models' results, held to a margin."""
    from gemmule.evals.eval_target import results_folder
    from gemmule.evals.safety.evaluate import read_result
    from gemmule.evals.safety.gate import Gate, check
    from gemmule.runs.schema_evals import PromotionCheck

    if margin < 0:
        raise ConfigError(f"--safety-margin {margin:g}: it must be 0 or more points")
    ours, theirs = (read_result(results_folder(model)) for model in (candidate, parent))
    measured = [name for name, metric in ours[0]["figures"].items() if _is_measured(metric)]
    rules = Gate(baseline=parent, margins=dict.fromkeys(measured, margin))
    return [
        PromotionCheck(name=f"safety: {c.metric}", rule=c.rule, passed=c.passed, outcome=c.outcome)
        for c in check(rules, ours[0], ours[1], theirs)
    ]


def _is_measured(metric: Mapping[str, object]) -> bool:
    return "missing" not in metric
