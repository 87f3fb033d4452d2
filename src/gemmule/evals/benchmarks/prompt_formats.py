"""The same questions in twelve formats: how much a score owes to the way it is asked.

The report's table 11 does so for MMLU and gives the standard deviation. Its formats are not
published; these vary what others have varied: how a choice is marked, what stands between the
choices, and what introduces question and answer. What is scored is the mark of the choice.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from gemmule.evals.benchmarks.benchmark import Benchmark

Asked = tuple[str, list[str], int]  # question, choices, place of the right one

SOURCE = "Gemma 2 report (arXiv 2408.00118), table 11"
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "mmlu": {"Gemma 2 2B": 2.1, "Gemma 2 9B": 0.9, "Gemma 2 27B": 1.0}
}

_MARKS = (("{}.", "{}"), ("({})", "({})"), ("{})", "{}"))  # before a choice, as an answer
_BETWEEN = ("\n", " ")
_FRAMES = (("Question: ", "Answer:"), ("", "The answer is"))


def _mmlu(doc: Mapping[str, Any]) -> Asked:
    return doc["question"].strip(), list(doc["choices"]), int(doc["answer"])


def _arc(doc: Mapping[str, Any]) -> Asked:
    choices = doc["choices"]
    return doc["question"], list(choices["text"]), choices["label"].index(doc["answerKey"])


def _piqa(doc: Mapping[str, Any]) -> Asked:
    return doc["goal"], [doc["sol1"], doc["sol2"]], int(doc["label"])


def _siqa(doc: Mapping[str, Any]) -> Asked:
    choices = [doc["answerA"], doc["answerB"], doc["answerC"]]
    return f"{doc['context']} {doc['question']}", choices, int(doc["label"]) - 1


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Asked]] = {
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
        words: what is particular, in words.
        benchmark: with prompts of that format, scored by the choices' marks.
    """

    words: str
    benchmark: Benchmark


def variants(benchmark: Benchmark) -> list[Variant]:
    """The twelve; none for a benchmark that is not of questions with whole choices."""
    read = _READERS.get(benchmark.name)
    if read is None:
        return []
    return [
        Variant(
            f"{mark.format('A')} / {between!r} / {question}… {answer}",
            _as(benchmark, read, (mark, said), between, (question, answer)),
        )
        for (mark, said), between, (question, answer) in product(_MARKS, _BETWEEN, _FRAMES)
    ]


def _as(
    benchmark: Benchmark,
    read: Callable[[Mapping[str, Any]], Asked],
    marks: tuple[str, str],
    between: str,
    frame: tuple[str, str],
) -> Benchmark:
    mark, said = marks

    def text(doc: Mapping[str, Any]) -> str:
        question, choices, _ = read(doc)
        lines = between.join(
            f"{mark.format(letter)} {choice}"
            for letter, choice in zip("ABCDE", choices, strict=False)
        )
        return f"{frame[0]}{question}\n{lines}\n{frame[1]}"

    def letters(doc: Mapping[str, Any]) -> list[str]:
        return [said.format("ABCDE"[i]) for i in range(len(read(doc)[1]))]

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
    """Mean and standard deviation over the formats, 0 to 1, beside the report's (in percent)."""
    values = [float(score["value"]) for score in scores]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values),
        "scores": [dict(score) for score in scores],
        "published_std_percent": dict(PUBLISHED.get(name, {})),
        "source": SOURCE,
    }
