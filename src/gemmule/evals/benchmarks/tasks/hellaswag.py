"""HellaSwag (Zellers et al., 2019): which ending continues a description."""

import dataclasses
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

# The documents already have the form that lm-eval's process_docs gives those of the hub.
_SETTINGS: dict[str, Any] = {"process_docs": None}


def hellaswag(folder: Path) -> LocalData:
    """Reads two files of contexts with endings: the correct one, and the first of three others."""
    right = folder / "hellaswag_val_correct.txt.800"
    wrong = folder / "hellaswag_val_wrong.txt.800"
    rights, wrongs = local_files.lines(right), local_files.lines(wrong)
    local_files.same_length(right, rights, wrong, wrongs)
    asked = []
    for number, pair in enumerate(zip(rights, wrongs, strict=True), 1):
        context, *endings = _split_pair(*pair)
        if not context or not all(endings):
            raise DataError(
                f"{wrong}:{number}: not a context and an ending, beginning as the same line of "
                f"{right.name} does"
            )
        asked.append(_row(context, endings, number))
    notes = (f"{len(asked)} questions, two endings each: not comparable with published scores",)
    return LocalData(
        {"hellaswag": {"validation": asked}},
        [right, wrong],
        notes,
        overrides={"hellaswag": _SETTINGS},
        chance=0.5,
    )


def _split_pair(right: str, wrong: str) -> tuple[str, str, str]:
    """The words that both lines begin with, and the rest of each."""
    words, others = right.split(), wrong.split()
    pairs = enumerate(zip(words, others, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(words), len(others)))
    return " ".join(words[:shared]), " ".join(words[shared:]), " ".join(others[shared:])


def _row(context: str, endings: list[str], number: int) -> Doc:
    # Alternating, so that a model to which both are equally likely scores one half.
    gold = number % 2
    choices = endings[::-1] if gold else endings
    return {"query": context, "choices": choices, "gold": gold, "label": str(gold)}


_HELLASWAG = Benchmark(
    name="hellaswag",
    title="HellaSwag",
    tasks=("hellaswag",),
    shots=10,
    metric="acc_norm",
    kind="choice",
    chance=0.25,
    folder="hellaswag_800",
    local=hellaswag,
)
# Without few-shot examples, which take a small model long to read and do not help it.
_ZERO_SHOT = dataclasses.replace(
    _HELLASWAG, name="hellaswag-0", title="HellaSwag (0-shot)", shots=0
)
BENCHMARKS = (_HELLASWAG, _ZERO_SHOT)
