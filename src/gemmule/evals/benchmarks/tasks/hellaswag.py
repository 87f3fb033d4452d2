"""HellaSwag (Zellers et al., 2019): how a description goes on."""

import dataclasses
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, Local, Row

# The rows are made here already as lm-eval makes them from the hub's.
_SETTINGS: dict[str, Any] = {"process_docs": None}


def hellaswag(folder: Path) -> Local:
    """Two files of contexts with endings: the right one, and the first of three wrong ones."""
    right = folder / "hellaswag_val_correct.txt.800"
    wrong = folder / "hellaswag_val_wrong.txt.800"
    rights, wrongs = local_files.lines(right), local_files.lines(wrong)
    local_files.same_length(right, rights, wrong, wrongs)
    asked = []
    for number, pair in enumerate(zip(rights, wrongs, strict=True), 1):
        context, *endings = _taken_apart(*pair)
        if not context or not all(endings):
            raise DataError(
                f"{wrong}:{number}: not a context and an ending, beginning as the same line of "
                f"{right.name} does"
            )
        asked.append(_row(context, endings, number))
    notes = (f"{len(asked)} questions, two endings each: not comparable with published scores",)
    return Local(
        {"hellaswag": {"validation": asked}},
        [right, wrong],
        notes,
        overrides={"hellaswag": _SETTINGS},
        chance=0.5,
    )


def _taken_apart(right: str, wrong: str) -> tuple[str, str, str]:
    """The words that both begin with, and what follows in each."""
    words, others = right.split(), wrong.split()
    pairs = enumerate(zip(words, others, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(words), len(others)))
    return " ".join(words[:shared]), " ".join(words[shared:]), " ".join(others[shared:])


def _row(context: str, endings: list[str], number: int) -> Row:
    # Alternating, so that a model to which all is equally likely gets half of them.
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
# Without the examples, which a small model reads in vain and for long.
_ZERO_SHOT = dataclasses.replace(
    _HELLASWAG, name="hellaswag-0", title="HellaSwag (0-shot)", shots=0
)
BENCHMARKS = (_HELLASWAG, _ZERO_SHOT)
