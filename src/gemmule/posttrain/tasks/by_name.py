"""Tasks by name, and their problems as files that `gemmule sft` and `gemmule align` read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemmule import files
from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.posttrain.tasks.arithmetic import arithmetic
from gemmule.posttrain.tasks.countdown import countdown
from gemmule.posttrain.tasks.library_questions import library_questions
from gemmule.posttrain.tasks.problem import SPLITS, Draw, Problem, problems
from gemmule.posttrain.tasks.strings import strings

DRAWS: Mapping[str, Draw] = {
    "arithmetic": arithmetic,
    "countdown": countdown,
    "strings": strings,
}
LIBRARY = "library"
TASKS: Mapping[str, str] = {
    "arithmetic": "sums, differences and products: 37 + 5 =",
    "countdown": "reach a target with three numbers: Use 2, 3 and 7 to make 13.",
    "strings": "small operations on made-up words: Which word is last in: doma ki rotu?",
    LIBRARY: "questions about definitions in Python's library, in up to three turns",
}


def task_problems(name: str, split: str, count: int, seed: int = 0) -> list[Problem]:
    """Problems of a task, the same ones for the same arguments.

    Args:
        name: one of `TASKS`.
        split: "train" or "heldout"; no problem is in both.
        count: number of problems; "library" has a fixed number, and gives at most that many.
        seed: seed of the draws.

    Raises:
        ConfigError: for an unknown task or split, or more problems than a drawn task has.
        DataError: for "library", when this Python was installed without its library's source.
    """
    if name == LIBRARY:
        if split not in SPLITS:
            raise ConfigError(f"split {split!r}: a task has {' and '.join(SPLITS)}")
        questions = library_questions(seed)
        every = questions.train if split == "train" else questions.heldout
        return list(every[:count])
    if name not in DRAWS:
        raise ConfigError(f"there is no task {name!r}; {nearest(name, list(TASKS))}")
    return problems(DRAWS[name], name, split, count, seed)


def write_problems(path: Path, rows: Sequence[Problem]) -> None:
    """Writes problems as JSON lines, whole or not at all.

    Raises:
        OutputError: when the disk refuses.
    """
    lines = (json.dumps(row.conversation(), ensure_ascii=False) for row in rows)
    files.write_text(path, "".join(f"{line}\n" for line in lines))
