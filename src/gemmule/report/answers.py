"""The card's questions and answers, from answers.json of `gemmule quickstart --chat`."""

import dataclasses
from collections.abc import Sequence

from gemmule.report.result_file import Interval, ResultFile
from gemmule.report.run_files import Document
from gemmule.report.values import Provenance, Sentence, Value, decimals, sentence

# Models of answers.json: their names on the card and their colors.
_MODELS = {
    "teacher": ("Teacher, fine-tuned", "teacher"),
    "student_sft": ("Student, fine-tuned", "scratch"),
    "student": ("Student, then distilled on its own answers", "distilled"),
}
_MOST = 4  # examples on the card
_PERCENT = decimals(1, percent=True)


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """How well a model answers: fraction of right answers, and of those that ended by themselves.

    Attributes:
        name: what the model is.
        role: its color.
        exact: right answers, percent.
        ended: answers that ended by themselves, percent.
    """

    name: str
    role: str
    exact: Interval
    ended: Value


@dataclasses.dataclass(frozen=True)
class Example:
    """A held-out question, and what the models answered.

    Attributes:
        question: the question, after those before it in its conversation.
        right: the right answer.
        answers: name and color of a model, its answer, and whether that is right.
    """

    question: str
    right: str
    answers: Sequence[tuple[str, str, str, bool]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The section.

    Attributes:
        lead: what was asked.
        rows: a row for each model.
        examples: a few questions, spread evenly.
        chosen: the model that the conversations are with.
        conversations: turns of each, as role ("user" or "assistant") and text.
    """

    lead: Sentence
    rows: Sequence[ModelRow]
    examples: Sequence[Example]
    chosen: str
    conversations: Sequence[Sequence[tuple[str, str]]]


def section(document: Document | None, provenance: Provenance) -> Answers | None:
    """The section; None of a run that was not one of the chat stages."""
    if document is None:
        return None
    file, content = ResultFile(document, provenance), document.content
    rows = []
    for key in content["models"]:
        name, role = _MODELS.get(key, (key, ""))
        exact = file.interval(f"models.{key}.exact", f"{name}: right answers", _PERCENT)
        ended = file.take(f"models.{key}.ended.value", f"{name}: answers that ended", _PERCENT)
        rows.append(ModelRow(name, role, exact, ended))
    every = content["examples"]
    count = min(_MOST, len(every))
    return Answers(
        lead=sentence(
            "{} short questions about a line of Python each, from modules that were held out of "
            "training, answered at temperature 0. An answer that the limit of its length cuts is "
            "wrong.",
            file.count("questions", "held-out questions"),
        ),
        rows=rows,
        examples=[_example(every[i * len(every) // count]) for i in range(count)],
        chosen=_MODELS.get(content["chosen"], (content["chosen"], ""))[0],
        conversations=[
            [(turn["role"], turn["content"]) for turn in turns]
            for turns in content["conversations"]
        ],
    )


def _example(entry: dict[str, object]) -> Example:
    answers = entry["answers"]
    assert isinstance(answers, dict)  # checked by the schema
    return Example(
        str(entry["question"]),
        str(entry["right"]),
        [
            (*_MODELS.get(key, (key, "")), answer["text"], answer["correct"])
            for key, answer in answers.items()
        ],
    )
