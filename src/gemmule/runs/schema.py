"""The files that a training run leaves: written and read by the same classes.

    Result(nats_per_token=3.5, ...).write(layout.result)
    Result.read(layout.result).train_tokens

A file holds at least the fields that readers rely on. Fields that a class does not know are kept,
so that files of other versions can be read and written again; a field that an older version did not
write is optional. Numbers are finite, and nothing is converted: a number in quotes is an error.

Files of evaluations are in schema_evals.py, carbon.json is `carbon.Energy`, config.toml is the
train package's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pydantic

from gemmule import files
from gemmule.errors import CheckpointError

Number = int | float
Amount = Annotated[int | float, pydantic.Field(ge=0)]


class Group(pydantic.BaseModel):
    """A group of fields in a file, which is written in the order in which it was given."""

    model_config = pydantic.ConfigDict(
        extra="allow", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    _order: tuple[str, ...] = pydantic.PrivateAttr(())

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, value: Any, handler: pydantic.ModelWrapValidatorHandler[Self]) -> Self:
        group = handler(value)
        if isinstance(value, Mapping):
            group._order = tuple(value)
        return group

    @pydantic.model_serializer(mode="wrap")
    def _in_order(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {name: fields.pop(name) for name in self._order if name in fields} | fields

    def __eq__(self, other: object) -> bool:
        """Whether the other group has the same fields, in whatever order."""
        return isinstance(other, type(self)) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]


class RunFile(Group):
    """A JSON file of a run."""

    # What a user can do about a broken file, for messages.
    advice: ClassVar[str] = "restore it, or make the run again"

    @classmethod
    def parse(cls, value: Any, source: str) -> Self:
        """Checks the content of a file.

        Args:
            value: the parsed JSON.
            source: name of the file, for the error message.

        Raises:
            CheckpointError: naming a field that is wrong or missing.
        """
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{source}: expected a JSON object")
        try:
            return cls.model_validate(dict(value))
        except pydantic.ValidationError as e:
            errors = sorted(e.errors(), key=lambda error: error["type"] == "missing")
            raise CheckpointError(f"{source}: {_explain(errors[0])}; {cls.advice}") from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            CheckpointError: when it is not there, is not JSON, or has a wrong field.
        """
        return cls.parse(read_json(path), str(path))

    def to_json(self) -> dict[str, Any]:
        """The content of the file, without fields that were never given."""
        return self.model_dump(exclude_unset=True, by_alias=True)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            OutputError: when the disk refuses.
        """
        files.write_json(path, self.to_json())


class Parent(Group):
    """A model that a run started or learned from.

    Attributes:
        path: where it was; None for a server.
        fingerprint: fingerprint of its weights.
    """

    path: str | None = None
    fingerprint: str | None = None


class Corpus(Group):
    """The data of a run.

    Attributes:
        name: name for people.
        fingerprint: fingerprint of the tokenized text.
        tokens_by: tokens of the training split by "license" and "source", where documents say them.
        decontaminated: benchmarks whose text was taken out, and words in a row that count.
        redacted: number of values of personal data by kind and what became of them.
    """

    name: str | None = None
    licence: str | None = None
    language: Any = None
    fingerprint: str | None = None
    tokens_by: dict[str, dict[str, int]] | None = None
    decontaminated: dict[str, Any] | None = None
    redacted: dict[str, int] | None = None


class Manifest(RunFile):
    """manifest.json: what a reader needs to trace and repeat a run.

    Attributes:
        gemmule: version of gemmule.
        created: time of the start, ISO 8601.
        versions: versions of Python and the libraries.
        machine: processor, cores, memory, system.
        kind: "train" for pretraining, "distill", or another kind of run.
        seed: seed of weights and batches.
        data: the corpus.
        tokenizer: fingerprint of the tokenizer.
        parent: the model that the run started or learned from; None for random weights.
        parents: all such models, when there are several.
        teacher: the parent, in early runs.
        targets: the logit store that the run learned from.
        mixture: the data folders of a run over several: "sources", each with its license and the
            tokens that the run is to read of it, and "stage_starts", in steps.
        model: configuration of the model.
        parameters: number of parameters.
        non_embedding_parameters: number of parameters without the embedding.
        objective: description of what the run minimizes.
        adapter: the adapter that was trained in place of the model's weights.
    """

    gemmule: str | None = None
    created: str | None = None
    versions: dict[str, str] | None = None
    machine: dict[str, Any] | None = None
    kind: str
    seed: int | None = None
    data: Corpus
    tokenizer: str | None = None
    parent: Parent | None = None
    parents: list[Parent] | None = None
    teacher: Parent | None = None
    targets: dict[str, Any] | None = None
    mixture: dict[str, Any] | None = None
    model: dict[str, Any]
    parameters: int | None = None
    non_embedding_parameters: int | None = None
    objective: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None

    @property
    def distilled(self) -> bool:
        """Whether the model learned from a teacher."""
        return self.kind == "distill"


class RunResult(RunFile):
    """result.json of a run of any kind; other fields are the metrics that its kind has.

    Attributes:
        parameters: number of parameters.
        train_tokens: number of tokens trained on.
        train_flops: floating-point operations of training.
        seconds: time spent in training steps, and before them on what they need, such as the
            log-probabilities of a reference; evaluation is not part of it.
        energy_wh: energy of training in watt-hours; None when it was not measured.
        gco2e: grams of CO2 equivalent; None when not known.
        seed: seed of weights and batches.
        best: "step", "tokens" and validation "loss" of the state that the model is, in a run that
            kept the best one.
    """

    parameters: Number
    train_tokens: Number
    train_flops: Number | None = None
    seconds: Number | None = None
    energy_wh: Number | None = None
    gco2e: Number | None = None
    seed: Number | None = None
    best: dict[str, Number] | None = None


class Result(RunResult):
    """result.json of a language model, with its metrics on held-out text.

    Attributes:
        split: name of the split of the data, "heldout".
        nats_per_token: mean loss.
        perplexity: exp of the mean loss.
        bits_per_byte: loss per byte of text.
        heldout_tokens: number of tokens evaluated.
    """

    split: str | None = None
    nats_per_token: Number
    perplexity: Number
    bits_per_byte: Number
    heldout_tokens: Number | None = None


class Pair(Group):
    """The results of two students, one trained from scratch and one distilled."""

    scratch: Result
    distilled: Result


class AtBestEpoch(Result):
    """The result of a run on little text that kept its best state.

    Attributes:
        epochs: epochs until that state.
        schedule_epochs: epochs of the run.
    """

    epochs: Number
    schedule_epochs: Number


class Recording(Group):
    """The cost of recording a teacher for the text."""

    flops: Number
    seconds: Number | None = None
    energy_wh: Number | None = None
    gco2e: Number | None = None


class ScarceText(Group):
    """The best that either way makes of a small part of the text.

    Attributes:
        text: "tokens" and "bytes" of that part.
        scratch: the run from scratch with the lowest validation loss.
        distilled: the distilled one.
        tried: every run, by way.
        recording: cost of the teacher's forward passes, once over the text.
        students_of_teacher: number of students that share the cost of training the teacher.
    """

    text: dict[str, Number]
    scratch: AtBestEpoch
    distilled: AtBestEpoch
    tried: dict[str, list[dict[str, Any]]] | None = None
    recording: Recording
    students_of_teacher: int


class Comparison(RunFile):
    """comparison.json: the models of a finished quickstart.

    Attributes:
        equal_tokens: students trained on the same number of tokens.
        equal_compute: the student from scratch trained for as much compute as distilling took.
        scarce_text: students of a small part of the text, each at its best epoch.
        heldout: name and size of the text they were compared on.
        teacher: the teacher's result.
        seed: seed of the students.
    """

    equal_tokens: Pair
    equal_compute: Pair
    scarce_text: ScarceText | None = None
    heldout: dict[str, Any] | None = None
    teacher: Result | None = None
    seed: int | None = None


class MetricsLine(RunFile):
    """A line of metrics.jsonl. Other fields are metrics: numbers, or None for NaN and infinity.

    Attributes:
        step: number of finished optimizer steps.
        tokens: number of training tokens read.
        seconds: time spent in steps.
        split: name of the split, in a line of an evaluation.
        probe: name of the probe, in a line of one.
    """

    step: int | None = None
    tokens: Number
    seconds: Number | None = None
    split: str | None = None
    probe: str | None = None

    def number(self, name: str) -> float | None:
        """A metric of the line; None when it has none of that name, or a NaN."""
        value = (self.__pydantic_extra__ or {}).get(name)
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if usable else None  # type: ignore[arg-type]


def read_json(path: Path) -> Any:
    """The parsed JSON of a run's file.

    Raises:
        CheckpointError: when it is not there or is not JSON.
    """
    try:
        return files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}: the run is not complete") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable JSON: {e}") from None


def _explain(error: Any) -> str:
    # Branches of a union and tags of a choice are not part of the file.
    parts = [str(p) for p in error["loc"] if not str(p).startswith("<")]
    while parts and parts[-1] in {"int", "float", "constrained-int", "constrained-float"}:
        parts.pop()
    name = ".".join(parts) or "the file"
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return f"{name} is missing"
    shown = f"{value!r}" if len(f"{value!r}") <= 60 else f"of type {type(value).__name__}"
    if kind in {"int_type", "float_type", "finite_number", "int_from_float"}:
        return f"{name} is {shown}, not a finite number"
    message = str(error["msg"])
    return f"{name} is {shown}: {message[0].lower()}{message[1:]}"
