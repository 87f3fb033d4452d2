"""Result files of evaluations, in the folder evals/ of a run or by themselves.

gemmule eval           benchmarks.json     Benchmarks
gemmule safety         safety.json         Safety
gemmule memorization   memorization.json   Memorization
gemmule gate           gates.json          Gates
gemmule ablate size    size_factor.json    SizeFactors

The chat stages of a quickstart have theirs in their folder:

gemmule quickstart --chat   answers.json   Answers
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from gemmule.runs.schema import Group, Number, Parent, RunFile


def _has_missing(entry: Any) -> str:
    missing = isinstance(entry, Mapping) and "missing" in entry
    return "<missing>" if missing or hasattr(entry, "missing") else "<measured>"


class Interval(Group):
    """A value and its 95% interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: number of observations.
    """

    value: Number
    low: Number
    high: Number
    n: Number | None = None


class Model(Group):
    """The model that was measured."""

    path: str | None = None
    parameters: Number | None = None


# --- benchmarks.json ---


class BenchmarkScore(Group):
    """A benchmark that was measured; score and chance are fractions."""

    title: str | None = None
    shots: int | list[int] | None = None
    metric: str | None = None
    published: dict[str, Any]
    filter: str | None = None
    value: Number
    low: Number
    high: Number
    n: Number
    of: Number
    limit: int | None = None
    chance: Number | None = None
    at_chance: bool | None = None
    truncated: Number | None = None
    notes: list[str]
    files: list[dict[str, Any]] | None = None
    prompts: str | None = None
    tasks: dict[str, Any] | None = None
    contamination: dict[str, Any]


class MissingBenchmark(Group):
    """A benchmark that was not measured, and why."""

    title: str | None = None
    shots: int | list[int] | None = None
    metric: str | None = None
    published: dict[str, Any]
    missing: str


class MeasuredModel(Model):
    """The model that was measured, with its size, which the card plots."""

    parameters: Number


class Published(Group):
    """Published scores of other models: where they are from, and the models' sizes."""

    source: str | None = None
    parameters: dict[str, Number]


class Benchmarks(RunFile):
    """benchmarks.json: scores on benchmarks."""

    advice: ClassVar[str] = "measure again with gemmule eval"

    format: int | None = None
    kind: Literal["benchmarks"]
    model: MeasuredModel
    settings: dict[str, Any] | None = None
    lm_eval: str | None = None
    bos: str | None = None
    sandbox: dict[str, Any] | None = None
    published: Published
    rows: dict[
        str,
        Annotated[
            Annotated[BenchmarkScore, Tag("<measured>")]
            | Annotated[MissingBenchmark, Tag("<missing>")],
            Discriminator(_has_missing),
        ],
    ]
    formats: dict[str, Any] | None = None
    samples: str | None = None
    seconds: Number | None = None
    against: list[dict[str, Any]] | None = None


# --- safety.json ---


class SafetyScore(Group):
    """A safety metric that was measured, in percent.

    Attributes:
        report: the Gemma 2 report's values, by model size.
        better: which way is good: "higher", "lower", "zero" or "half".
        parts: the same by group of questions.
    """

    title: str | None = None
    benchmark: str | None = None
    better: str | None = None
    chance: Number | None = None
    report: dict[str, Number]
    value: Number
    low: Number
    high: Number
    n: Number
    parts: dict[str, Any] | None = None


class MissingSafetyScore(Group):
    """A safety metric that was not measured, and why."""

    title: str | None = None
    benchmark: str | None = None
    better: str | None = None
    chance: Number | None = None
    report: dict[str, Number] | None = None
    missing: str


class SafetyQuestions(Group):
    """How a safety benchmark was asked."""

    title: str | None = None
    tasks: list[str] | None = None
    asked: Number
    there: Number


class GateCheck(Group):
    """One rule of a safety gate, and whether it holds.

    Attributes:
        figure: name of the metric.
        rule: the rule, in words.
        passed: whether it holds.
        outcome: value of the metric, in words.
    """

    figure: str
    rule: str
    passed: bool
    outcome: str = Field(alias="found")


class Gate(Group):
    """The outcome of a safety gate."""

    file: str | None = None
    passed: bool | None = None
    checks: list[GateCheck] = Field(default_factory=list)


class Safety(RunFile):
    """safety.json: scores on safety benchmarks."""

    advice: ClassVar[str] = "measure again with gemmule safety"

    format: int | None = None
    kind: Literal["safety"]
    model: Model | None = None
    settings: dict[str, Any] | None = None
    lm_eval: str | None = None
    scorer: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    unit: str | None = None
    figures: dict[
        str,
        Annotated[
            Annotated[SafetyScore, Tag("<measured>")]
            | Annotated[MissingSafetyScore, Tag("<missing>")],
            Discriminator(_has_missing),
        ],
    ]
    benchmarks: dict[str, SafetyQuestions] | None = None
    samples: str | None = None
    seconds: Number | None = None
    gate: Gate | None = None


# --- memorization.json ---


class Rates(Group):
    """How many passages were reproduced; the rates are None where there was none to count."""

    split: str | None = None
    source: str | None = None
    times: str | None = None
    repeats: int | None = None
    read_least: int | None = None
    read_most: int | None = None
    probes: Number
    exact: Interval | None
    approximate: Interval | None
    why: str | None = None


class MeasuredRates(Rates):
    """How many of at least one passage were reproduced."""

    exact: Interval
    approximate: Interval


class SourceRates(Rates):
    """Passages of one source."""

    source: str


class TimesRates(Rates):
    """Passages that were read equally often, such as "1" or "3 to 4" times."""

    times: str


class CanaryRates(Rates):
    """Canaries that were planted equally often."""

    repeats: int


class Canaries(Group):
    """Rates of canaries, and why there are none if so."""

    groups: list[CanaryRates]
    why: str | None = None


class Severity(Group):
    """Passages with personal data of one severity.

    Attributes:
        in_text: number of passages that contain it.
        recalled: number of passages that reproduced it.
        of_probes: `recalled` as a fraction of all passages.
    """

    in_text: Number
    recalled: Number
    of_probes: Interval


class Severities(Group):
    """Personal data by severity."""

    high: Severity
    medium: Severity
    low: Severity


class PersonalData(Group):
    """Personal data in passages."""

    memorised: Number | None = None
    severities: Severities


class MemorizationSettings(Group):
    """What was asked."""

    prompt_tokens: Number
    continuation_tokens: Number
    most_edits: Number


class Measured(Group):
    """What makes two measurements the same one."""

    format: int | None = None
    settings: MemorizationSettings


class Differences(Group):
    """Differences between two models over the same passages."""

    exact: Interval
    approximate: Interval


class Against(Group):
    """Another model on the same passages."""

    model: Model | None = None
    train: Rates
    control: Rates | None = None
    difference: Differences


class Memorization(RunFile):
    """memorization.json: how much of its training text a model reproduces."""

    advice: ClassVar[str] = "measure again with gemmule memorization --fresh"

    format: int | None = None
    kind: Literal["memorization"]
    gemmule: str | None = None
    model: Model | None = None
    measured: Measured
    data: dict[str, Any] | None = None
    train: MeasuredRates
    control: Rates
    sources: list[SourceRates] | None = None
    times_read: list[TimesRates] | None = None
    canaries: Canaries | None = None
    personal_data: PersonalData
    seconds: Number | None = None
    notes: list[str] | None = None
    against: Against | None = None


# --- gates.json ---


class PromotionCheck(Group):
    """A rule of a promotion gate, and what came of it.

    Attributes:
        name: name of the rule.
        rule: the rule, in words.
        passed: whether it holds.
        outcome: the measured value, in words.
        estimate: the measured value with its interval.
        candidate: mean of the candidate.
        parent: mean of the parent.
    """

    name: str
    rule: str
    passed: bool
    outcome: str
    estimate: Interval | None = None
    candidate: Number | None = None
    parent: Number | None = None


class Gates(RunFile):
    """gates.json: whether a model may replace its parent.

    Attributes:
        passed: whether all rules hold.
        candidate: the model.
        parent: the model that it was made from.
        checks: the rules.
        not_checked: names of rules that could not be applied, because nothing was given.
        reward: what answers were scored by.
        prompts: what both models answered.
        base_text: text that both were evaluated on.
        settings: how it was measured.
        seconds: time that it took.
    """

    advice: ClassVar[str] = "measure again with gemmule gate"

    kind: Literal["gates"]
    passed: bool
    candidate: Parent
    parent: Parent
    checks: list[PromotionCheck]
    not_checked: list[str] = Field(default_factory=list)
    reward: dict[str, Any] | None = None
    prompts: dict[str, Any] | None = None
    base_text: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    seconds: Number | None = None


# --- answers.json ---


class AnswerRates(Group):
    """How well a model answers held-out questions.

    Attributes:
        exact: fraction of right answers.
        ended: fraction of answers that ended by themselves.
        families: right answers by kind of question.
    """

    exact: Interval
    ended: Interval
    families: dict[str, Interval] | None = None


class ModelAnswer(Group):
    """A model's answer, and whether it is right."""

    text: str
    correct: bool


class AnsweredQuestion(Group):
    """A question, the right answer, and those of the models by name."""

    question: str
    right: str
    answers: dict[str, ModelAnswer]


class Turn(Group):
    """A turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class Answers(RunFile):
    """answers.json: questions that the models of the chat stages have answered.

    Attributes:
        questions: number of held-out questions.
        models: rates of each model, by the name of its run.
        gain: right answers gained by the last model over the one before it.
        chosen: model that the conversations are with.
        examples: some of the questions.
        conversations: conversations that are the same for every model.
    """

    advice: ClassVar[str] = "delete it, and continue with gemmule quickstart --chat --resume"

    questions: int
    models: dict[str, AnswerRates]
    gain: Interval
    chosen: str
    examples: list[AnsweredQuestion] = Field(min_length=1)
    conversations: list[list[Turn]]


# --- size_factor.json, and results.json of a sweep of sizes ---


class SizeRatio(Group):
    """How many times larger a model from scratch has to be; None where that is not known.

    Attributes:
        value: the factor, or its bound.
        low: lower end of its 95% interval.
        high: upper end.
        bound: "more than", "at most" or "undetermined" where the factor was not reached.
        n: number of seeds.
    """

    value: Number | None
    low: Number | None
    high: Number | None
    bound: str | None
    n: Number


class SizeFactor(Group):
    """The size factor of one distilled model.

    Attributes:
        group: its size.
        basis: what the models from scratch have in common with it.
        factor: by parameters without the embedding.
        factor_of_all_parameters: by all of them.
    """

    group: str
    basis: str
    factor: SizeRatio
    factor_of_all_parameters: SizeRatio


class SizeFactors(RunFile):
    """Size factors of the distilled models of a sweep."""

    advice: ClassVar[str] = "repeat the sweep's command: gemmule ablate size"

    size_factors: list[SizeFactor]
