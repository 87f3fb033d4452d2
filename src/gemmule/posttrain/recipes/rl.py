"""Reinforcement learning from rewards: RLOO, GRPO and J-BOND, one optimizer step per rollouts."""

from collections.abc import Mapping
from typing import Literal, Self

import pydantic
from pydantic import Field

from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.model.gemma import Gemma
from gemmule.posttrain import advantages
from gemmule.posttrain.anchor import Anchor
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.objectives.policy_gradient import LossType, Normalization, PolicyGradient
from gemmule.posttrain.reward_evaluation import RewardEvaluation
from gemmule.posttrain.rewarded_steps import GroupSteps, JBondSteps, Rewarding
from gemmule.posttrain.rewards.by_name import check_tokenizer, for_manifest, open_rewards
from gemmule.posttrain.rollout_prompts import PromptTable
from gemmule.posttrain.rollouts import Rollouts, RolloutSampler
from gemmule.posttrain.sampler_check import BOUND, SamplerCheck, check_dtype
from gemmule.posttrain.step_hook import AnswerHook
from gemmule.train.config import ObjectiveConfig, RunConfig
from gemmule.train.initial_model import initial_model, required_start
from gemmule.train.probe import Probe
from gemmule.train.recipe import Recipe, start_of

Method = Literal["rloo", "grpo", "jbond"]
_BETA: Mapping[Method, float] = {"rloo": 0.05, "grpo": 0.0, "jbond": 0.0}
_ANCHOR_RATE: Mapping[Method, float] = {"rloo": 0.0, "grpo": 0.0, "jbond": 0.02}
_LOSS_TYPE: Mapping[Method, LossType] = {"rloo": "rloo", "grpo": "dr_grpo", "jbond": "rloo"}
_JBOND_ROWS = 2  # the policy's answer, and the better of the anchor's
# Settings that only some methods have.
_OWN: Mapping[str, tuple[Method, ...]] = {
    "loss_type": ("grpo",),
    "scale_rewards": ("grpo",),
    "samples": ("rloo", "grpo"),
    "backward_weight": ("jbond",),
}


class RlConfig(ObjectiveConfig):
    """Reinforcement learning on answers that the model samples.

    A row of data.batch_size is an answer; data.seq_len bounds prompt and answer together.

    Attributes:
        method: "rloo", "grpo" (without the standard deviation and with a constant length, as Dr.
            GRPO, unless scale_rewards and loss_type say otherwise) or "jbond".
        rewards: weight of each reward by name; see gemmule.posttrain.rewards.by_name.
        samples: answers per prompt. J-BOND has one, and two of its anchor.
        max_new_tokens: longest answer, tokens.
        cut_reward: reward of an answer that this limit cuts, whatever it says.
        beta: weight of the divergence from the anchor; None: 0.05 in "rloo", otherwise 0.
        kl: "reward" takes the log ratio of an answer off its reward; "exact" adds the divergence
            at each token, summed over the vocabulary, to the loss.
        anchor_rate: fraction of the model in the anchor's moving average, each step; 0: the anchor
            stays the model that the run starts from. None: 0.02 in "jbond", otherwise 0. Without
            beta there is an anchor in "jbond" only.
        loss_type: denominator in "grpo": "dr_grpo", "grpo" or "dapo", see
            gemmule.posttrain.objectives.policy_gradient.
        scale_rewards: whether "grpo" divides by the standard deviation of a group.
        backward_weight: in "jbond" the weight of the policy's own answer against that of the better
            of the anchor's two, the paper's beta.
        max_logp_difference: largest difference between the log-probabilities of sampler and
            trainer, nats, that does not stop the run.
    """

    kind: Literal["rl"] = "rl"
    method: Method = "rloo"
    rewards: dict[str, float] = Field(default_factory=dict)
    samples: int = Field(default=8, gt=1)
    max_new_tokens: int = Field(default=128, gt=0)
    cut_reward: float = Field(default=0.0, allow_inf_nan=False)
    beta: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    kl: Literal["reward", "exact"] = "reward"
    anchor_rate: float | None = Field(default=None, ge=0, lt=1)
    loss_type: LossType | None = None
    scale_rewards: bool = False
    backward_weight: float = Field(default=0.5, ge=0, le=1)
    max_logp_difference: float = Field(default=BOUND, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _has_a_reward(self) -> Self:
        if not self.rewards:
            raise ValueError("there is no reward: set rewards, such as {number = 1.0}")
        return self

    @pydantic.model_validator(mode="after")
    def _only_settings_of_the_method(self) -> Self:
        for name, methods in _OWN.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.method not in methods:
                raise ValueError(
                    f"{name} is a setting of {' and '.join(methods)}, and the method is "
                    f"{self.method}: leave it out"
                )
        if self.method == "jbond" and self.kl == "exact":
            raise ValueError('kl = "exact" is for rloo and grpo: J-BOND\'s returns have the ratio')
        unused = {"kl": self.kl == "exact", "anchor_rate": self.anchor_rate is not None}
        has_anchor = self.method == "jbond" or self.divergence_weight
        for name in [name for name, given in unused.items() if given and not has_anchor]:
            raise ValueError(
                f"{name} is about the divergence from the anchor, whose weight beta is 0: set "
                f"beta, or leave {name} out"
            )
        return self

    @property
    def divergence_weight(self) -> float:
        """`beta`, or the method's own."""
        return _BETA[self.method] if self.beta is None else self.beta

    @property
    def update_rate(self) -> float:
        """`anchor_rate`, or the method's own."""
        return _ANCHOR_RATE[self.method] if self.anchor_rate is None else self.anchor_rate

    @property
    def answers_per_prompt(self) -> int:
        """Rows of a batch for each prompt."""
        return _JBOND_ROWS if self.method == "jbond" else self.samples


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data, a reward or the model to start from cannot be used.
    """
    settings, data = config.objective, config.data
    assert isinstance(settings, RlConfig)
    start = required_start(config, "reinforcement learning")
    check_dtype(config)
    _check_rows(config, settings)
    table = PromptTable.read(
        ChatData(dataset), seq_len=data.seq_len, max_new_tokens=settings.max_new_tokens
    )
    table.say_left_out()
    reward = open_rewards(settings.rewards)
    check_tokenizer(reward, dataset.tokenizer)
    model, tokenizer = initial_model(config, dataset), dataset.tokenizer
    beta, jbond = settings.divergence_weight, settings.method == "jbond"
    anchor = Anchor(model, settings.update_rate) if beta or jbond else None
    loss_type = settings.loss_type or _LOSS_TYPE[settings.method]
    normalization = Normalization(loss_type, settings.max_new_tokens, _JBOND_ROWS if jbond else 1)
    exact = settings.kl == "exact"
    rewarding = Rewarding(
        reward,
        settings.cut_reward,
        None if exact else anchor,
        beta,
        normalization,
        data.micro_batch,
    )

    def sampler(of: Gemma, samples: int, stream: int) -> RolloutSampler:
        params = SamplingParams.on_policy(settings.max_new_tokens, n=samples)
        return RolloutSampler(of, tokenizer, params, config.seed, stream)

    steps: GroupSteps | JBondSteps
    if jbond:
        assert anchor is not None
        steps = JBondSteps(rewarding, sampler(anchor.model, 2, 1), settings.backward_weight)
    elif settings.method == "rloo":
        steps = GroupSteps(rewarding, advantages.leave_one_out, advantages.leave_one_out)
    else:
        scaled = advantages.standardized if settings.scale_rewards else advantages.centered
        steps = GroupSteps(rewarding, scaled, advantages.centered)
    check = SamplerCheck(settings.max_logp_difference)
    per_prompt = settings.answers_per_prompt
    source = Rollouts(
        table.prompts["train"],
        sampler(model, 1 if jbond else settings.samples, 0),
        steps.build,
        prompts_per_step=data.batch_size // per_prompt,
        micro_batches=data.micro_batches,
        seed=config.seed,
    )
    evaluation = RewardEvaluation(sampler(model, 1, 2), rewarding)
    wanted = config.evaluation
    return Recipe(
        model,
        source,
        PolicyGradient(normalization, check, anchor, beta if exact else 0.0),
        probes=[
            Probe(
                "validation",
                wanted.every,
                lambda _: evaluation.measure(table.prompts["validation"], wanted.tokens),
                label="split",
            )
        ],
        result=lambda: {
            "split": "heldout",
            **evaluation.measure(table.prompts["heldout"], wanted.heldout_tokens),
            "prompt_too_long": table.too_long,
        },
        parents=[start_of(start, model)],
        inputs={"rewards": for_manifest(reward), "prompts": table.counts()},
        tokens_per_step=data.tokens_per_step,
        auto_dtype="float32",
        hook=AnswerHook([steps, check], model, anchor),
    )


def _check_rows(config: RunConfig, settings: RlConfig) -> None:
    data, per_prompt = config.data, settings.answers_per_prompt
    if data.batch_size % per_prompt:
        raise ConfigError(
            f"data.batch_size = {data.batch_size} answers are not a multiple of the {per_prompt} "
            "answers to each prompt"
        )
    if settings.method == "jbond" and data.micro_batch % _JBOND_ROWS:
        raise ConfigError(
            f"data.micro_batch_size = {data.micro_batch} must be even: J-BOND trains on two "
            "answers to each prompt"
        )
