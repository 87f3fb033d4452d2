"""WinoGrande (Sakaguchi et al., 2020): which of two names or things fills a blank."""

import re
from pathlib import Path

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

_INSTRUCTION = re.compile(
    r"Please choose the correct answer to fill in the blank to complete the given sentence: "
    r"(?P<sentence>[^_]*_[^_]*)\n\n"
    r"Option1: (?P<option1>.+) Option2: (?P<option2>.+) Answer format: option1/option2"
)


def winogrande(folder: Path) -> LocalData:
    """Reads test.json: the validation set, rewritten as instructions.

    There is no training set in this form, so the few-shot examples are other questions of this
    file; lm-eval leaves out the evaluated one.
    """
    path = folder / "test.json"
    asked = []
    fields = {"instruction": str, "answer": str}
    for number, row in enumerate(local_files.entries(path, fields), 1):
        parts = _INSTRUCTION.fullmatch(row["instruction"])
        if not parts or row["answer"] not in {"option1", "option2"}:
            raise DataError(f"{path}: entry {number} is not a sentence with one _ and two options")
        asked.append({**parts.groupdict(), "answer": row["answer"].removeprefix("option")})
    notes = ("the examples are other questions of the validation set",)
    return LocalData({"winogrande": {"validation": asked}}, [path], notes)


BENCHMARKS = (
    Benchmark(
        name="winogrande",
        title="Winogrande",
        tasks=("winogrande",),
        shots=5,
        metric="acc",
        kind="choice",
        chance=0.5,
        folder="winogrande",
        local=winogrande,
    ),
)
