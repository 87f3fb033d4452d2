"""gemmule align."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gemmule.cli.app import POST_TRAIN, command
from gemmule.cli.options import AsJson, ConfigFile, Out, Overrides, Resume
from gemmule.cli.post_training import StartAndData, new_run, reward_weights
from gemmule.cli.train import override, run_settings, train_model
from gemmule.config import ModelName, nearest
from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from gemmule.cli.post_training import Prepare
    from gemmule.train.config import RunConfig

# The kind of run that each method is a setting of; "opd" is a kind of its own.
_KINDS: Mapping[str, str] = {
    "opd": "opd",
    **dict.fromkeys(("rloo", "grpo", "jbond"), "rl"),
    **dict.fromkeys(("dpo", "ipo", "simpo", "kto"), "preference"),
}


@command(POST_TRAIN)
def align(
    out: Out,
    start: StartAndData,
    config: ConfigFile = None,
    method: Annotated[str | None, typer.Option(help=f"One of {', '.join(_KINDS)}.")] = None,
    rewards: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="NAME[=WEIGHT]",
            help="Reward of rloo, grpo, jbond: number, code, module:function, a reward model's "
            "path, …; repeatable.",
        ),
    ] = None,
    teacher: Annotated[ModelName | None, typer.Option(help="Teacher of opd.")] = None,
    labeled: Annotated[
        bool, typer.Option("--labeled", help="kto: files hold single answers with a label.")
    ] = False,
    overrides: Overrides = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Improve a model that answers: on-policy distillation, rewards, or preferences.

    Files hold prompts for opd, rloo, grpo and jbond, and pairs for dpo, ipo, simpo and kto.

    Example: gemmule align configs/rloo-1m.toml --method rloo --model runs/sft --file sums.jsonl
    --reward number --out runs/rloo
    """
    chosen = list(overrides or [])
    if resume:
        if start.given() or method or rewards or teacher or labeled:
            raise ConfigError("--resume continues with the run's saved settings: give only --out")
        settings = run_settings(config, chosen, out, resume)
    else:
        kind = _kind(method)
        chosen += _of_method(str(method), kind, rewards or [], teacher)
        if labeled and method != "kto":
            raise ConfigError(f"--labeled is for kto, not {method}")
        preparer = functools.partial(_prepare, labeled)
        settings = new_run(kind, config, chosen, start, out, preparer)
    train_model(settings, out, resume, as_json, chats=True)


def _kind(method: str | None) -> str:
    if method is None:
        raise ConfigError(f"which method? Name it with --method: {', '.join(_KINDS)}")
    if method not in _KINDS:
        raise ConfigError(f"there is no method {method!r}; {nearest(method, list(_KINDS))}")
    return _KINDS[method]


def _of_method(
    method: str,
    kind: str,
    rewards: Sequence[str],
    teacher: ModelName | None,
) -> list[str]:
    """Settings that options stand for.

    Raises:
        ConfigError: for an option of another method, or a reward that cannot be read.
    """
    if kind != "rl" and rewards:
        raise ConfigError(f"--reward is for rloo, grpo and jbond, not {method}")
    if kind != "opd" and teacher:
        raise ConfigError(f"--teacher is for opd, not {method}")
    chosen = [] if kind == "opd" else [override("objective.method", method)]
    if rewards:
        weights = reward_weights(rewards).items()
        pairs = ", ".join(f"{_quoted(name)} = {weight}" for name, weight in weights)
        chosen.append(f"objective.rewards={{{pairs}}}")
    if teacher:
        chosen.append(override("objective.teacher", teacher))
    return chosen


def _quoted(name: str) -> str:
    return override("", name).removeprefix("=")


def _prepare(labeled: bool, settings: "RunConfig") -> "Prepare":
    """What makes the data of a run from files."""
    from gemmule.posttrain.chat_data import prepare_conversations, prepare_pairs, prepare_prompts
    from gemmule.posttrain.recipes.opd import OpdConfig

    objective = settings.objective
    if objective.kind == "preference":
        return prepare_conversations if labeled else prepare_pairs
    mixed = isinstance(objective, OpdConfig) and objective.lmbda < 1
    return prepare_conversations if mixed else prepare_prompts
