"""On-policy distillation: a student learns its teacher's distribution on the student's answers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from gemmule.config import ModelName
from gemmule.console import console
from gemmule.data.batch import Batch
from gemmule.data.dataset import Dataset
from gemmule.data.source import Source
from gemmule.errors import ConfigError, DataError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.losses.divergences import Kind
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_rows import batches_of_rollouts
from gemmule.posttrain.chat_data import ChatData
from gemmule.posttrain.mixed_source import MixedSource
from gemmule.posttrain.objectives.on_policy_distillation import OnPolicyDistillation
from gemmule.posttrain.rendering import Rendered, longest_conversation
from gemmule.posttrain.rewarded_steps import answer_metrics
from gemmule.posttrain.rollout_prompts import PromptTable
from gemmule.posttrain.rollouts import Group, RolloutPrompt, Rollouts, RolloutSampler
from gemmule.posttrain.sampler_check import BOUND, check_dtype
from gemmule.posttrain.spread import spread
from gemmule.posttrain.step_hook import AnswerHook
from gemmule.teachers.open import open_teacher
from gemmule.train.config import DivergenceConfig, RunConfig
from gemmule.train.initial_model import initial_model, required_start
from gemmule.train.objective import label_weight
from gemmule.train.probe import Probe
from gemmule.train.recipe import Recipe, start_of

EVALUATION = 2**62  # number of the first position of answers that are not trained on


class OpdConfig(DivergenceConfig):
    """On-policy distillation (generalized knowledge distillation, arXiv 2306.13649).

    A row of data.batch_size is an answer; data.seq_len bounds prompt and answer together. The
    divergence is that of `DivergenceConfig`; answers are sampled at temperature 1 in any case.

    Attributes:
        teacher: run, HF-layout folder or hub id; it has the tokenizer of the student.
        loss: divergence of the student's distribution from the teacher's.
        lmbda: fraction of the steps that train on the student's own answers, GKD's lambda; the
            others train on answers from the data, which are conversations then.
        samples: answers per prompt.
        max_new_tokens: longest answer, tokens; longer ones are cut, counted, and trained up to
            there.
        max_logp_difference: largest difference between the log-probabilities of sampler and
            trainer, nats, that does not stop the run.
    """

    kind: Literal["opd"] = "opd"
    teacher: ModelName
    loss: Kind = "reverse_kl"
    lmbda: float = Field(default=1.0, ge=0, le=1)
    samples: int = Field(default=1, gt=0)
    max_new_tokens: int = Field(default=128, gt=0)
    max_logp_difference: float = Field(default=BOUND, gt=0, allow_inf_nan=False)


def build(config: RunConfig, dataset: Dataset) -> Recipe:
    """The recipe.

    Raises:
        UserError: when a setting, the data, the student or the teacher cannot be used.
    """
    settings, data = config.objective, config.data
    assert isinstance(settings, OpdConfig)
    start = required_start(config, "on-policy distillation")
    check_dtype(config)
    if data.batch_size % settings.samples:
        raise ConfigError(
            f"data.batch_size = {data.batch_size} answers are not a multiple of objective.samples "
            f"= {settings.samples} for each prompt"
        )
    chat = ChatData(dataset)
    table = PromptTable.read(chat, seq_len=data.seq_len, max_new_tokens=settings.max_new_tokens)
    table.say_left_out()
    left_out: dict[str, Any] = {"prompt_too_long": table.too_long}
    student = initial_model(config, dataset)
    teacher = open_teacher(settings.teacher, dataset, data.seq_len)
    if teacher.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"the teacher, {settings.teacher}, has {teacher.vocab_size} rows in its vocabulary and "
            f"the student {student.config.vocab_size}: choose a teacher with as many"
        )
    objective = OnPolicyDistillation(
        teacher, settings.divergence, settings.temperature, settings.max_logp_difference
    )
    params = SamplingParams.on_policy(settings.max_new_tokens, n=settings.samples)
    sampler = RolloutSampler(student, dataset.tokenizer, params, config.seed)
    answers = _Answers(data.micro_batch)
    source: Source = Rollouts(
        table.prompts["train"],
        sampler,
        answers.batches,
        prompts_per_step=data.batch_size // settings.samples,
        micro_batches=data.micro_batches,
        seed=config.seed,
    )
    if settings.lmbda < 1:
        conversations, too_long = _conversations(chat, data.seq_len)
        left_out["conversation_too_long"] = too_long
        source = MixedSource(
            source,
            conversations,
            settings.lmbda,
            micro_batch=data.micro_batch,
            micro_batches=data.micro_batches,
            seed=config.seed,
        )
    evaluation = Evaluation(student, objective, sampler, data.micro_batch)
    tokens = config.evaluation.tokens, config.evaluation.heldout_tokens

    def validation(_: int) -> Mapping[str, float]:
        return evaluation.measure(table.prompts["validation"], tokens[0])

    def result() -> Mapping[str, Any]:
        measured = evaluation.measure(table.prompts["heldout"], tokens[1])
        return {"split": "heldout", **measured, **left_out}

    return Recipe(
        student,
        source,
        objective,
        probes=[Probe("validation", config.evaluation.every, validation, label="split")],
        result=result,
        parents=[start_of(start, student), teacher.describe()],
        inputs={"prompts": table.counts()},
        tokens_per_step=data.tokens_per_step,
        auto_dtype="float32",  # bfloat16 is one more difference between sampler and trainer
        hook=AnswerHook([objective.check, answers], student),
    )


def _conversations(chat: ChatData, seq_len: int) -> tuple[list[Rendered], int]:
    """The conversations of the training split that fit in a row, and how many others there are."""
    if chat.kind != "conversations":
        raise DataError(
            f"objective.lmbda below 1 needs answers to learn from, and {chat.dataset.path} holds "
            f"{chat.kind}: give a folder of conversations, or leave lmbda at 1"
        )
    rendered = [c.rendered for c in chat.conversations("train")]
    fitting = [c for c in rendered if len(c) <= longest_conversation(seq_len)]
    too_long = len(rendered) - len(fitting)
    if too_long:
        console.print(
            f"left out: {too_long:,} of {len(rendered):,} conversations, longer than data.seq_len "
            f"= {seq_len} tokens",
            markup=False,
        )
    return fitting, too_long


class _Answers:
    """Makes the batches of a step, and remembers what to log about its answers."""

    def __init__(self, micro_batch: int) -> None:
        self._micro_batch = micro_batch
        self._metrics: dict[str, float] = {}

    def batches(self, groups: Sequence[Group]) -> list[Batch]:
        """Batches of `micro_batch` rollouts."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self._metrics = answer_metrics(rollouts)
        return batches_of_rollouts(rollouts, self._micro_batch)

    def after_step(self) -> dict[str, float]:
        """Metrics of the step's answers; none after a step on data."""
        metrics, self._metrics = self._metrics, {}
        return metrics


class Evaluation:
    """Divergence from the teacher on answers that the student gives to prompts of a split.

    Args:
        student: model that answers.
        objective: the divergence.
        sampler: samples the answers.
        rows: answers per forward pass.
    """

    def __init__(
        self, student: Gemma, objective: OnPolicyDistillation, sampler: RolloutSampler, rows: int
    ) -> None:
        self._student, self._objective = student, objective
        self._sampler, self._rows = sampler, rows

    @torch.no_grad()
    def measure(self, prompts: Sequence[RolloutPrompt], tokens: int | None) -> dict[str, float]:
        """Means over the tokens of the answers; the draws are the same each time.

        Args:
            prompts: prompts of the split.
            tokens: number of tokens of prompts to use, spread evenly; None: all.
        """
        few = [prompts[i] for i in spread([len(prompt.ids) for prompt in prompts], tokens)]
        positions = range(EVALUATION, EVALUATION + len(few))
        groups = self._sampler.sample(few, positions)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        sums = {"loss": 0.0, "entropy": 0.0}
        count = 0.0
        device = self._student.norm.weight.device
        for batch in batches_of_rollouts(rollouts, self._rows):
            count += label_weight(batch)
            loss, further = self._objective.loss(self._student, batch.to(device))
            for name, value in {"loss": loss, **further}.items():
                sums[name] += value.item()
        self._objective.check.after_step()  # not those of a step
        means = {name: value / count for name, value in sums.items()}
        return {**means, **answer_metrics(rollouts)}
