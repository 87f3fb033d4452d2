"""`gate`: a candidate against its parent, with the verdict in evals/gates.json."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.load import load_model
from gemmule.config import Config
from gemmule.data.dataset import Dataset
from gemmule.errors import CheckpointError, ConfigError, DataError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.gates import measure, rules
from gemmule.posttrain.gates.rules import GateLimits
from gemmule.posttrain.rewards.protocol import Reward
from gemmule.posttrain.rollout_prompts import prompts_of
from gemmule.posttrain.rollouts import RolloutPrompt
from gemmule.runs.schema_evals import Gates, PromotionCheck

Stage = Callable[[str], None]
MINIMUM = 20  # prompts, below which an interval of their mean says little


class GateConfig(Config):
    """How a gate measures, and what it demands.

    Attributes:
        prompts: largest number of held-out prompts.
        samples: answers to each prompt, at temperature 1.
        max_new_tokens: longest answer, tokens.
        cut_reward: reward of an answer that this limit cuts.
        base_tokens: tokens of base text to read.
        seq_len: tokens of a window of base text.
        seed: seed of the answers.
        limits: what a candidate must reach.
    """

    prompts: int = Field(default=200, ge=MINIMUM)
    samples: int = Field(default=4, gt=0)
    max_new_tokens: int = Field(default=128, gt=0)
    cut_reward: float = Field(default=0.0, allow_inf_nan=False)
    base_tokens: int = Field(default=65_536, gt=0)
    seq_len: int = Field(default=256, gt=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    limits: GateLimits = GateLimits()


def gate(
    candidate: str | Path,
    parent: str | Path,
    data: ChatData,
    *,
    config: GateConfig | None = None,
    reward: Reward | None = None,
    base: Dataset | None = None,
    more: Sequence[PromotionCheck] = (),
    stage: Stage = lambda _: None,
) -> Gates:
    """Measures both models and applies the rules.

    Args:
        candidate: model that may replace the parent.
        parent: model that it was made from.
        data: held-out prompts that both answer.
        config: settings; None: the defaults.
        reward: what answers are worth: not only what the candidate was trained on, if that can be
            deceived. None: rewards are not compared.
        base: text that the parent was pretrained on, or the like; None: the loss on it is not
            compared.
        more: further checks, such as those of safety.
        stage: called with the name of each stage.

    Returns:
        The content of gates.json. What was not compared is named in it.

    Raises:
        UserError: when a model or the data cannot be used, or they do not fit each other.
    """
    config, began = config or GateConfig(), time.monotonic()
    ours, tokenizer = load_model(candidate, torch.float32)
    theirs, parents_tokenizer = load_model(parent, torch.float32)
    _check_tokenizers(candidate, tokenizer, parent, parents_tokenizer, data, base)
    prompts, too_long = _prompts(data, ours, config)
    groups = {}
    for name, model in (("candidate", ours), ("parent", theirs)):
        stage(f"{name}: {config.samples} answers to each of {len(prompts)} prompts")
        groups[name] = measure.sample(
            model.eval(),
            tokenizer,
            prompts,
            samples=config.samples,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
    answers = {
        name: measure.describe_answers(part, reward, config.cut_reward)
        for name, part in groups.items()
    }
    pair, limits = (answers["candidate"], answers["parent"]), config.limits
    stage("divergence from the parent")
    nats = measure.divergences(ours, theirs, groups["candidate"])
    tokens = [sum(lengths) for lengths in answers["candidate"].lengths]
    checks = [] if reward is None else [rules.reward_check(*pair, limits.reward_gain)]
    if base is not None:
        stage("loss on base text")
        losses = [_base_losses(model, base, config) for model in (ours, theirs)]
        checks.append(rules.base_loss_check(losses[0], losses[1], limits.base_loss_rise))
    checks += [
        rules.kl_check(nats, tokens, limits.kl),
        rules.length_check(*pair, limits.length_ratio),
        rules.stop_check(*pair, limits.stop_rate),
        *more,
    ]
    missing = {"reward": reward, "base loss": base, "safety": more or None}
    values = {
        "kind": "gates",
        "passed": all(check.passed for check in checks),
        "candidate": _model(candidate, ours),
        "parent": _model(parent, theirs),
        "checks": checks,
        "not_checked": [name for name, given in missing.items() if given is None],
        "reward": None if reward is None else reward.describe(),
        "prompts": {"name": data.dataset.name, "fingerprint": data.dataset.fingerprint,
                    "split": "heldout", "count": len(prompts), "too_long": too_long},
        "base_text": None if base is None else {"name": base.name, "fingerprint": base.fingerprint},
        "settings": config.model_dump(mode="json"),
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    return Gates.parse(values, "gates.json")


def _check_tokenizers(
    candidate: str | Path,
    ours: Tokenizer,
    parent: str | Path,
    theirs: Tokenizer,
    data: ChatData,
    base: Dataset | None,
) -> None:
    if ours.fingerprint != theirs.fingerprint:
        raise CheckpointError(
            f"{candidate} has another tokenizer than {parent}: a candidate is compared with the "
            "model that it was made from"
        )
    for dataset in (data.dataset, *([base] if base else [])):
        if dataset.tokenizer.fingerprint != ours.fingerprint:
            raise DataError(
                f"{dataset.path} was made with another tokenizer than that of {candidate}: make it "
                "again with this one"
            )


def _prompts(data: ChatData, model: Gemma, config: GateConfig) -> tuple[list[RolloutPrompt], int]:
    """Held-out prompts that leave room for an answer, and the number of those that do not."""
    room = model.config.max_position_embeddings - config.max_new_tokens
    every = prompts_of(data, "heldout")
    prompts = [p for p in every if len(p.ids) <= room]
    if len(prompts) < MINIMUM:
        raise ConfigError(
            f"{data.dataset.path} has {len(prompts)} held-out prompts that leave room for "
            f"{config.max_new_tokens} tokens, and a gate needs {MINIMUM}: hold out more when the "
            "data is made, or lower max_new_tokens"
        )
    count = min(config.prompts, len(prompts))
    chosen = [prompts[i * len(prompts) // count] for i in range(count)]
    return chosen, len(every) - len(prompts)


def _base_losses(model: Gemma, base: Dataset, config: GateConfig) -> list[float]:
    length = min(config.seq_len, model.config.max_position_embeddings)
    split = base.split("heldout")
    losses = measure.window_losses(model, split, seq_len=length, max_tokens=config.base_tokens)
    if len(losses) < MINIMUM:
        raise DataError(
            f"the held-out text of {base.path} has {len(losses)} windows of {length} tokens, and a "
            f"gate needs {MINIMUM}: give more text, or lower seq_len"
        )
    return losses


def _model(path: str | Path, model: Gemma) -> dict[str, Any]:
    return {"path": str(path), "fingerprint": weights_fingerprint(model)}


def describe(gates: Gates) -> list[list[str]]:
    """Rows of a table: rule, outcome, whether it holds."""
    return [
        [check.name, check.rule, check.outcome, "passed" if check.passed else "failed"]
        for check in gates.checks
    ]
