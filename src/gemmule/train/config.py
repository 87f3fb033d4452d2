"""Settings of a training run, in groups; the resolved ones are saved with the run.

`objective.kind` decides what a run does. Each kind has its own settings in the group `objective`, a
subclass of `ObjectiveConfig`; the groups together are a discriminated union that stays open:
`register_objective` adds a kind, and no module of this package needs to know it. Of gemmule's own
kinds that packages above this one register, FURTHER_KINDS has the module: it is imported when
settings name a kind or a setting that is not known yet.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, SerializeAsAny

from gemmule.config import Config, ModelName, nearest
from gemmule.data.mixture import settings as mixture_settings
from gemmule.data.mixture.settings import MixtureSource, MixtureStage
from gemmule.errors import ConfigError
from gemmule.losses.divergences import CROSS_ENTROPY, PARAMETERS, Divergence, Kind
from gemmule.model.config import GemmaConfig
from gemmule.runtime.config import RuntimeConfig
from gemmule.train.adapters.settings import AdapterSettings

# Where the settings of the flat files of earlier versions are now.
FLAT_KEYS: Mapping[str, str] = {
    **{k: f"runtime.{k}" for k in ("device", "dtype", "compile", "threads", "country")},
    "data": "data.path",
    **{
        k: f"data.{k}" for k in ("corpus_tokens", "seq_len", "batch_size", "micro_batch_size")
    },
    "preset": "model.preset",
    "init": "model.init",
    **{
        k: f"objective.{k}"
        for k in (
            "teacher", "targets", "loss", "beta", "skew", "temperature", "alpha", "route_above",
            "cross_tokenizer", "span_temperature",
        )
    },
    "evaluate_every": "evaluation.every",
    "evaluation_tokens": "evaluation.tokens",
    "heldout_tokens": "evaluation.heldout_tokens",
    "memorization": "evaluation.memorization",
    "checkpoint_every": "checkpoint.every",
    "checkpoint_minutes": "checkpoint.minutes",
    "keep_checkpoints": "checkpoint.keep",
}  # fmt: skip
# Settings that every flat file of a run has, since all were saved; a user's own file had few.
_SAVED_FLAT = {
    "device", "dtype", "compile", "threads", "data", "preset", "model", "steps", "batch_size",
    "seq_len", "seed", "evaluate_every", "evaluation_tokens", "checkpoint_every",
    "checkpoint_minutes", "keep_checkpoints", "log_every", "optimizer", "schedule",
}  # fmt: skip


class DataConfig(Config):
    """Training data, and how it is cut into batches.

    Attributes:
        path: folder made by `gemmule data`; of a mixture, that of its first source.
        corpus_tokens: number of tokens to read, counted from the start of the corpus; None: all.
        mixture: folders that are read together, each with a weight; None: `path` alone.
        stages: parts at the end of the run with other weights, in order.
        seq_len: tokens per sequence.
        batch_size: sequences per optimizer step.
        micro_batch_size: sequences per forward pass, at most; gradients add up to batch_size. None:
            the whole batch. Ranks share a batch, so theirs may have to be smaller.
    """

    path: Path
    corpus_tokens: int | None = Field(default=None, gt=0)
    mixture: tuple[MixtureSource, ...] | None = Field(default=None, min_length=1)
    stages: tuple[MixtureStage, ...] | None = Field(default=None, min_length=1)
    seq_len: int = Field(default=256, gt=0)
    batch_size: int = Field(default=8, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch_size or self.batch_size

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.batch_size // self.micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a full batch."""
        return self.batch_size * self.seq_len

    @pydantic.model_validator(mode="before")
    @classmethod
    def _path_is_that_of_the_first_source(cls, values: Any) -> Any:
        match values:
            case {"mixture": [{"path": first}, *_]} if "path" not in values:
                return {**values, "path": first}
        return values

    @pydantic.model_validator(mode="after")
    def _mixture_is_whole(self) -> Self:
        if self.mixture is None:
            if self.stages is not None:
                raise ValueError("stages change the weights of a mixture: set mixture as well")
            return self
        if self.path != self.mixture[0].path:
            raise ValueError(
                f"path {self.path} is one data folder and mixture names others: leave out path, or "
                "mixture"
            )
        if self.corpus_tokens is not None:
            raise ValueError(
                "corpus_tokens limits one data folder: leave it out, and limit the sources of the "
                "mixture with max_epochs"
            )
        mixture_settings.check(self.mixture, self.stages or ())
        return self

    def shared_by(self, ranks: int) -> Self:
        """The settings of each of several ranks, with the largest micro-batch that fits its share.

        Args:
            ranks: number of ranks that read different sequences.

        Raises:
            ConfigError: when the batch cannot be shared equally.
        """
        rows, rest = divmod(self.batch_size, ranks)
        if rest:
            raise ConfigError(
                f"data.batch_size = {self.batch_size}: {ranks} ranks cannot share a batch equally; "
                f"set it to a multiple of {ranks}, or start another number of ranks"
            )
        limit = min(self.micro_batch, rows)
        largest = next(n for n in range(limit, 0, -1) if rows % n == 0)
        return self.model_copy(update={"micro_batch_size": largest})

    @pydantic.model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class ModelConfig(Config):
    """The model to train: a preset, and by name any field of its shape that differs from it.

    Attributes:
        preset: name of the shape, see gemmule.model.config.
        init: model to start from instead of random weights (run, HF-layout folder, hub id).
    """

    model_config = pydantic.ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float] = Field(init=False)

    preset: str = "1m"
    init: ModelName | None = None

    @property
    def shape(self) -> dict[str, int | float]:
        """Fields of GemmaConfig that differ from the preset."""
        return dict(self.__pydantic_extra__)

    @pydantic.model_validator(mode="after")
    def _shape_has_known_fields(self) -> Self:
        allowed = list(GemmaConfig.model_fields)
        for name in self.shape:
            if name not in allowed:
                raise ValueError(f"unknown key {name!r}; {nearest(name, [*allowed, 'preset'])}")
        return self


class ObjectiveConfig(Config):
    """Settings of one kind of run; a subclass has `kind: Literal["name"] = "name"`.

    Attributes:
        kind: name of the kind.
    """

    kind: str


class PretrainConfig(ObjectiveConfig):
    """Next-token prediction on text."""

    kind: Literal["pretrain"] = "pretrain"


class DivergenceConfig(ObjectiveConfig):
    """Settings of the kinds of runs that learn from a teacher's distribution.

    Attributes:
        loss: distance from the student's distribution to the teacher's, see
            gemmule.losses.divergences.
        beta: weight of the teacher in the mixture of "jsd".
        skew: weight in the mixture, of the teacher in "skew_kl", of the student in
            "skew_reverse_kl".
        temperature: softmax temperature of both distributions.
    """

    loss: Kind = CROSS_ENTROPY.kind
    beta: float = Field(default=CROSS_ENTROPY.beta, gt=0, lt=1)
    skew: float = Field(default=CROSS_ENTROPY.skew, gt=0, lt=1)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _only_parameters_of_the_loss(self) -> Self:
        for name, kinds in PARAMETERS.items():
            if getattr(self, name) != getattr(CROSS_ENTROPY, name) and self.loss not in kinds:
                raise ValueError(
                    f"{name} is a parameter of {' and '.join(kinds)}, and loss is {self.loss}: "
                    "leave it out, or choose another loss"
                )
        return self

    @property
    def divergence(self) -> Divergence:
        """`loss` with its parameter."""
        return Divergence(self.loss, self.beta, self.skew)


class DistillConfig(DivergenceConfig):
    """Learning from a teacher's distribution; its distance is that of `DivergenceConfig`.

    Attributes:
        teacher: run, HF-layout folder or hub id; an alternative to `targets`.
        targets: logit store made by `gemmule record`; the teacher is not loaded.
        alpha: weight of the next-token loss; 0 is the report's pure distillation.
        route_above: entropy of the teacher, nats, above which a token learns from the next token
            instead; None: no token does.
        cross_tokenizer: whether the teacher may have another tokenizer; the student then learns
            from the likelihoods of spans, see gemmule.losses.span_likelihood.
        span_temperature: temperature of those likelihoods; replaces `temperature`.
        span_ends: where spans end: "token", at every boundary that both tokenizers have; or
            "space", before spaces, with a correction for what a boundary reveals.
    """

    kind: Literal["distill"] = "distill"
    teacher: ModelName | None = None
    targets: Path | None = None
    alpha: float = Field(default=0.0, ge=0, le=1)
    route_above: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cross_tokenizer: bool = False
    span_temperature: float = Field(default=100.0, gt=0, allow_inf_nan=False)
    span_ends: Literal["token", "space"] = "token"

    @pydantic.model_validator(mode="after")
    def _across_tokenizers_there_are_only_spans(self) -> Self:
        if not self.cross_tokenizer:
            return self
        if self.targets is not None:
            raise ValueError(
                "cross_tokenizer needs the teacher itself: a logit store holds the teacher's own "
                "tokens"
            )
        others = ("loss", "temperature", "route_above")
        given = [n for n in others if getattr(self, n) != type(self).model_fields[n].default]
        if given:
            raise ValueError(
                f"cross_tokenizer compares spans, not tokens, so {given[0]} has no meaning: leave "
                "it out (set span_temperature instead)"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _learns_from_one(self) -> Self:
        if self.route_above is not None and self.teacher is None:
            raise ValueError(
                "route_above needs the teacher's entropy: set teacher instead of targets"
            )
        if (self.teacher is None) == (self.targets is None):
            raise ValueError(
                "set either teacher (a model) or targets (a logit store made by gemmule record)"
            )
        return self


class OptimizerConfig(Config):
    """The optimizer.

    Attributes:
        name: "muon" (hidden matrices by Muon, embedding and norms by AdamW) or "adamw".
        learning_rate: peak for the hidden matrices and an adapter's factors; Muon's is scaled to
            AdamW's update size.
        embedding_learning_rate: peak for the embedding, the norms and DoRA's magnitudes.
        weight_decay: decoupled weight decay, on hidden matrices only.
        beta1: AdamW's decay rate of the first moment.
        beta2: AdamW's decay rate of the second moment.
        momentum: Muon's momentum.
        clip: largest norm of the whole gradient.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: float = Field(default=0.012, gt=0, allow_inf_nan=False)
    embedding_learning_rate: float = Field(default=0.024, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class ScheduleConfig(Config):
    """The learning-rate schedule.

    Attributes:
        name: "wsd" (warm-up, stable, decay) or "cosine".
        warmup: fraction of all steps spent rising from zero.
        decay: fraction of all steps spent falling at the end ("wsd").
        final: learning rate at the end, as a fraction of the peak.
    """

    name: Literal["wsd", "cosine"] = "wsd"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    decay: float = Field(default=0.5, ge=0, le=1)
    final: float = Field(default=0.0, ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _fits(self) -> Self:
        if self.name == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} add up to more than 1")
        return self


class MemorizationConfig(Config):
    """Memorization of training text, measured while the model learns.

    Attributes:
        every: steps between measurements.
        probes: number of training passages to try each time, and of validation passages.
        prompt_tokens: tokens of a passage that are given to the model.
        continuation_tokens: tokens of a passage that the model is to reproduce.
    """

    every: int = Field(default=100, gt=0)
    probes: int = Field(default=200, gt=0)
    prompt_tokens: int = Field(default=50, gt=0)
    continuation_tokens: int = Field(default=50, gt=0)


class EvaluationConfig(Config):
    """Evaluation during and after training.

    Attributes:
        every: steps between evaluations on the validation split.
        tokens: validation tokens of each evaluation, spread evenly over the split.
        heldout_tokens: held-out tokens of the final evaluation; None: all.
        keep: which state becomes the run's model: the "last" one, or the "best", the one with the
            lowest validation loss of all evaluations.
        patience: number of evaluations in a row without a lower loss after which a run that keeps
            the best state ends; None: it takes all its steps.
        memorization: settings of the memorization probe; None: memorization is not measured.
    """

    every: int = Field(default=200, gt=0)
    tokens: int = Field(default=65536, gt=0)
    heldout_tokens: int | None = Field(default=None, gt=0)
    keep: Literal["last", "best"] = "last"
    patience: int | None = Field(default=None, gt=0)
    memorization: MemorizationConfig | None = None

    @pydantic.model_validator(mode="after")
    def _patience_is_for_the_best(self) -> Self:
        if self.patience is not None and self.keep != "best":
            raise ValueError(
                "patience ends a run after its best state: set keep = 'best', or leave it out"
            )
        return self


class ParallelConfig(Config):
    """How the ranks of a run hold its model; a process alone holds all of it.

    Attributes:
        tensor_parallel_degree: ranks that divide each layer and the vocabulary, and compute the
            same part of every batch together; at most the number of key-value heads. Other ranks
            read parts of their own.
        data_parallel_shard_degree: ranks that hold the weights, gradients and optimizer states
            together, in shards (FSDP2); 1: every rank holds all of them; -1: all ranks together.
            Tensor-parallel ranks count as one, which holds its own part of them.
    """

    tensor_parallel_degree: int = Field(default=1, ge=1)
    data_parallel_shard_degree: int = Field(default=1, ge=-1)

    @pydantic.field_validator("data_parallel_shard_degree")
    @classmethod
    def _some_rank_holds_them(cls, degree: int) -> int:
        if degree == 0:
            raise ValueError("use 1 for whole weights on every rank, -1 for shards over all ranks")
        return degree


class TrainingRuntime(RuntimeConfig):
    """How a training run uses the machine.

    Attributes:
        attention: attention of the trained model in whole sequences: "block", gemmule's own, or
            "flex", torch's FlexAttention as a compiled kernel, for GPUs.
    """

    attention: Literal["block", "flex"] = "block"


class CheckpointConfig(Config):
    """Training states, from which a stopped run is resumed.

    Attributes:
        every: steps between training states.
        minutes: longest time between training states.
        keep: number of training states to keep.
    """

    every: int = Field(default=500, gt=0)
    minutes: float = Field(default=5.0, gt=0)
    keep: int = Field(default=2, gt=0)


class RunConfig(Config):
    """One training run; read with `load_run_config` or `RunConfig.parse`.

    Attributes:
        steps: number of optimizer steps.
        seed: seed of the initial weights and of the batch order.
        log_every: steps between lines of metrics.jsonl.
        data: training data and batches.
        model: shape and initial weights.
        objective: what the run minimizes; its `kind` is the kind of the run.
        adapter: adapter that is trained in place of the model's weights; None: they are trained.
        optimizer: optimizer.
        schedule: learning-rate schedule.
        evaluation: evaluation during and after training.
        checkpoint: training states.
        runtime: device, dtype, compilation, threads.
        parallel: how several ranks hold the model.
    """

    moved: ClassVar[Mapping[str, str]] = FLAT_KEYS

    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    log_every: int = Field(default=10, gt=0)
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: SerializeAsAny[ObjectiveConfig] = PretrainConfig()
    adapter: AdapterSettings | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    runtime: TrainingRuntime = TrainingRuntime()
    parallel: ParallelConfig = ParallelConfig()

    def data_ranks(self, ranks: int) -> int:
        """How many of the ranks of a run read sequences of their own; each stands for a group.

        A process alone holds the whole model, whatever the settings for several say.

        Args:
            ranks: all ranks of the run.

        Raises:
            ConfigError: when they cannot be divided into tensor-parallel groups.
        """
        degree = self.parallel.tensor_parallel_degree
        if ranks == 1:
            return 1
        if ranks % degree:
            raise ConfigError(
                f"parallel.tensor_parallel_degree = {degree}: {ranks} ranks cannot be divided "
                f"into groups of {degree}; start a multiple of {degree} ranks, or one"
            )
        return ranks // degree

    def shared_by(self, ranks: int) -> DataConfig:
        """The data settings of each of the ranks of a run, see `DataConfig.shared_by`.

        Args:
            ranks: all ranks of the run.

        Raises:
            ConfigError: when they cannot be divided into groups, or cannot share a batch equally.
        """
        return self.data.shared_by(self.data_ranks(ranks))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "config") -> Self:
        """Validates `values`; without the group `objective`, the run is a pretraining run.

        Raises:
            ConfigError: naming every wrong key and value, the nearest right key, and for a key of
                earlier versions its name today.
        """
        values = {"data": {}, "objective": {"kind": "pretrain"}, **values}
        concrete: type[Self] = _of_kind(values["objective"], source)
        return super(RunConfig, concrete).parse(values, source)

    @classmethod
    def upgrade(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Groups the settings of a run that an earlier version saved in a flat file."""
        return grouped(values) if values.keys() >= _SAVED_FLAT else values


FURTHER_KINDS = "gemmule.posttrain.kinds"  # module that registers kinds when it is imported
_OBJECTIVES: dict[str, type[ObjectiveConfig]] = {}


def register_objective(settings: type[ObjectiveConfig]) -> None:
    """Makes the kind of `settings` known; registering a kind again replaces its settings."""
    _OBJECTIVES[settings.model_fields["kind"].default] = settings


register_objective(PretrainConfig)
register_objective(DistillConfig)


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a run's settings, of whatever kind: a recipe, or the config.toml of a run.

    The flat files that earlier versions saved with their runs are read as what they mean today.

    Args:
        path: TOML file; None: the overrides alone.
        overrides: settings that win, as `group.key=value`.

    Raises:
        ConfigError: when the file is missing or not TOML, or a key or value is wrong.
    """
    return RunConfig.load(path, overrides)


def grouped(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys of earlier versions moved into today's groups."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        is_group = isinstance(value, Mapping) and key in RunConfig.model_fields
        group, _, name = (key if is_group else FLAT_KEYS.get(key, key)).partition(".")
        if name:
            values.setdefault(group, {})[name] = value
        elif isinstance(value, Mapping):
            values.setdefault(group, {}).update(value)
        else:
            values[group] = value
    if "objective" in values:
        values["objective"] = {"kind": "distill", **values["objective"]}
    return values


_CONCRETE: dict[type[ObjectiveConfig], type[RunConfig]] = {}


def _concrete(settings: type[ObjectiveConfig]) -> type[RunConfig]:
    """RunConfig with the settings of one kind in place of the union."""
    if settings not in _CONCRETE:
        _CONCRETE[settings] = pydantic.create_model(
            "RunConfig", __base__=RunConfig, objective=(settings, ...)
        )
    return _CONCRETE[settings]


def _of_kind(objective: Any, source: str) -> type[Any]:
    """RunConfig with the settings of the kind that `objective` names."""
    if isinstance(objective, ObjectiveConfig):
        return _concrete(type(objective))
    if not isinstance(objective, Mapping):
        raise ConfigError(
            f"{source}: objective = {objective!r}: a group of settings; did you mean "
            "'objective.kind'?"
        )
    kind = objective.get("kind")
    if kind not in _OBJECTIVES or not objective.keys() <= _OBJECTIVES[kind].model_fields.keys():
        importlib.import_module(FURTHER_KINDS)
    kinds = list(_OBJECTIVES)
    if kind is None:
        raise ConfigError(f"{source}: 'objective.kind' is required: one of {', '.join(kinds)}")
    if kind not in _OBJECTIVES:
        raise ConfigError(
            f"{source}: objective.kind = {kind!r}: unknown kind; {nearest(str(kind), kinds)}"
        )
    settings = _OBJECTIVES[kind]
    for key in objective:
        owners = [k for k, other in _OBJECTIVES.items() if key in other.model_fields]
        if key not in settings.model_fields and owners:
            raise ConfigError(
                f"{source}: objective.{key} is a setting of kind {owners[0]!r}, and objective.kind "
                f"is {kind!r}"
            )
    return _concrete(settings)
