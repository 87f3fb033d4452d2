"""ARC (Clark et al., 2018): grade-school science questions, easy and challenge sets."""

import re
import string
from pathlib import Path

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

_QUESTION = "Please choose the correct answer to the question: "


def easy(folder: Path) -> LocalData:
    """Reads arc_easy.jsonl: query, choices, gold. It needs no few-shot examples."""
    path = folder / "arc_easy.jsonl"
    return LocalData({"arc_easy": {"test": _test(path)}}, [path])


def challenge(folder: Path) -> LocalData:
    """Reads arc_challenge.jsonl, and ARC-Challenge/train.json for the few-shot examples."""
    test, train = folder / "arc_challenge.jsonl", folder / "ARC-Challenge/train.json"
    return LocalData(
        {"arc_challenge": {"test": _test(test), "train": _train(train)}}, [test, train]
    )


def _test(path: Path) -> list[Doc]:
    rows = []
    fields = {"query": str, "choices": list, "gold": int}
    for number, row in enumerate(local_files.jsonl(path, fields), 1):
        choices = local_files.options(path, number, "choices", row["choices"])
        right = choices[local_files.index(path, number, "gold", row["gold"], len(choices))]
        # A question with three answers has one of them twice in this file.
        once = list(dict.fromkeys(choices))
        rows.append(_row(row["query"].removeprefix("Question: "), once, once.index(right)))
    return rows


def _train(path: Path) -> list[Doc]:
    """Parses questions that were rewritten as instructions."""
    rows = []
    fields = {"instruction": str, "answer": str}
    for number, row in enumerate(local_files.entries(path, fields), 1):
        text = row["instruction"].removeprefix(_QUESTION)
        question, _, rest = text.partition("\n\nAnswer1: ")
        options = re.split(r" Answer\d: ", rest.partition("\n\nAnswer format:")[0])
        gold = re.fullmatch("answer([1-5])", row["answer"])
        if not rest or not gold or int(gold[1]) > len(options):
            raise DataError(f"{path}: entry {number} is not a question with answers 1 to 5")
        rows.append(_row(question, options, int(gold[1]) - 1))
    return rows


def _row(question: str, options: list[str], gold: int) -> Doc:
    labels = list(string.ascii_uppercase[: len(options)])
    choices = {"text": options, "label": labels}
    return {"question": question, "choices": choices, "answerKey": labels[gold]}


BENCHMARKS = (
    Benchmark(
        name="arc-e",
        title="ARC-e",
        tasks=("arc_easy",),
        shots=0,
        metric="acc_norm",
        kind="choice",
        chance=0.25,
        folder="arc",
        local=easy,
    ),
    Benchmark(
        name="arc-c",
        title="ARC-c",
        tasks=("arc_challenge",),
        shots=25,
        metric="acc_norm",
        kind="choice",
        chance=0.25,
        folder="arc",
        local=challenge,
    ),
)
