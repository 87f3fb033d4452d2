"""Social IQa (Sap et al., 2019): what people feel, want and do in a situation."""

from pathlib import Path

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

_FIELDS = {"context": str, "question": str, "options": list, "answer": str}


def siqa(folder: Path) -> LocalData:
    """Reads dev.jsonl: three options and the correct one's text; the hub has its number, from 1."""
    path = folder / "dev.jsonl"
    asked, twice = [], 0
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        options = local_files.options(path, number, "options", row["options"])
        if len(options) != 3:
            raise DataError(f"{path}:{number}: {len(options)} options; expected 3")
        if row["answer"] not in options:
            raise DataError(
                f"{path}:{number}: the answer {row['answer']!r} is not among the options"
            )
        twice += options.count(row["answer"]) > 1
        named = dict(zip(("answerA", "answerB", "answerC"), options, strict=True))
        label = str(options.index(row["answer"]) + 1)
        asked.append(
            {"context": row["context"], "question": row["question"], **named, "label": label}
        )
    notes = (f"{twice} of {len(asked)} questions have the right answer twice",) if twice else ()
    return LocalData({"social_iqa": {"validation": asked}}, [path], notes)


BENCHMARKS = (
    Benchmark(
        name="siqa",
        title="SIQA",
        tasks=("social_iqa",),
        shots=0,
        metric="acc",
        kind="choice",
        chance=1 / 3,
        folder="siqa",
        local=siqa,
    ),
)
