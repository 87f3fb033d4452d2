"""The same questions in twelve formats: how much a score depends on the format of the prompt.

The report's table 11 gives the standard deviation for MMLU. Its formats are not published. These
vary what others have varied: the label of a choice, the separator between choices, and the words
that introduce question and answer. The label of the choice is scored.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from gemmule.evals.benchmarks.benchmark import Benchmark

MultipleChoice = tuple[str, list[str], int]  # question, choices, index of the correct one

SOURCE = "Gemma 2 report (arXiv 2408.00118), table 11"
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "mmlu": {"Gemma 2 2B": 2.1, "Gemma 2 9B": 0.9, "Gemma 2 27B": 1.0}
}

_LABELS = (("{}.", "{}"), ("({})", "({})"), ("{})", "{}"))  # before a choice, as an answer
_SEPARATORS = ("\n", " ")
_FRAMES = (("Question: ", "Answer:"), ("", "The answer is"))


def _mmlu(doc: Mapping[str, Any]) -> MultipleChoice:
    return doc["question"].strip(), list(doc["choices"]), int(doc["answer"])


def _arc(doc: Mapping[str, Any]) -> MultipleChoice:
    choices = doc["choices"]
    return doc["question"], list(choices["text"]), choices["label"].index(doc["answerKey"])


def _piqa(doc: Mapping[str, Any]) -> MultipleChoice:
    return doc["goal"], [doc["sol1"], doc["sol2"]], int(doc["label"])


def _siqa(doc: Mapping[str, Any]) -> MultipleChoice:
    choices = [doc["answerA"], doc["answerB"], doc["answerC"]]
    return f"{doc['context']} {doc['question']}", choices, int(doc["label"]) - 1


_READERS: Mapping[str, Callable[[Mapping[str, Any]], MultipleChoice]] = {
    "mmlu": _mmlu,
    "mmlu-cloze": _mmlu,
    "arc-e": _arc,
    "arc-c": _arc,
    "piqa": _piqa,
    "siqa": _siqa,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A benchmark in one of the formats.

    Attributes:
        description: the format in words.
        benchmark: the benchmark with prompts in that format, scored by the choices' labels.
    """

    description: str
    benchmark: Benchmark


def variants(benchmark: Benchmark) -> list[Variant]:
    """The twelve variants; none for a benchmark without multiple-choice questions."""
    read = _READERS.get(benchmark.name)
    if read is None:
        return []
    return [
        Variant(
            f"{label.format('A')} / {separator!r} / {question}… {answer}",
            _formatted(benchmark, read, (label, reply), separator, (question, answer)),
        )
        for (label, reply), separator, (question, answer) in product(_LABELS, _SEPARATORS, _FRAMES)
    ]


def _formatted(
    benchmark: Benchmark,
    read: Callable[[Mapping[str, Any]], MultipleChoice],
    labels: tuple[str, str],
    separator: str,
    frame: tuple[str, str],
) -> Benchmark:
    label, reply = labels

    def text(doc: Mapping[str, Any]) -> str:
        question, choices, _ = read(doc)
        lines = separator.join(
            f"{label.format(letter)} {choice}"
            for letter, choice in zip("ABCDE", choices, strict=False)
        )
        return f"{frame[0]}{question}\n{lines}\n{frame[1]}"

    def letters(doc: Mapping[str, Any]) -> list[str]:
        return [reply.format("ABCDE"[i]) for i in range(len(read(doc)[1]))]

    def target(doc: Mapping[str, Any]) -> int:
        return read(doc)[2]

    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    overrides = {
        **benchmark.overrides,
        "doc_to_text": text,
        "doc_to_choice": letters,
        "doc_to_target": target,
        "target_delimiter": " ",
        "metric_list": metrics,
        "should_decontaminate": False,
    }
    return dataclasses.replace(benchmark, metric="acc", overrides=overrides)


def spread(name: str, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the formats, 0 to 1, and the report's in percent."""
    values = [float(score["value"]) for score in scores]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values),
        "scores": [dict(score) for score in scores],
        "published_std_percent": dict(PUBLISHED.get(name, {})),
        "source": SOURCE,
    }
