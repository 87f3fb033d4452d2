"""Natural Questions, open (Kwiatkowski et al., 2019): questions to a search engine."""

from pathlib import Path
from typing import Any

from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import ONE_LINE, SAME_FILE, Benchmark, LocalData

# An answer ends with its line. lm-eval also ends it at a full stop or comma, but for one question
# in eleven every correct answer contains one of them: "December 14, 1972".
_SETTINGS: dict[str, Any] = {
    "generation_kwargs": ONE_LINE,
}


def nq(folder: Path) -> LocalData:
    """Reads NQ-open.dev.jsonl: questions, each with a list of correct answers."""
    path = folder / "NQ-open.dev.jsonl"
    asked = []
    for number, row in enumerate(local_files.jsonl(path, {"question": str, "answer": list}), 1):
        answers = local_files.texts(path, number, "answer", row["answer"])
        asked.append({"question": row["question"], "answer": answers})
    note = "examples are other questions of the development set (never the evaluated one)"
    return LocalData(
        {"nq_open": {"validation": asked}}, [path], (note,), overrides={"nq_open": SAME_FILE}
    )


BENCHMARKS = (
    Benchmark(
        name="nq",
        title="NQ",
        tasks=("nq_open",),
        shots=5,
        metric="exact_match",
        kind="generation",
        chance=None,
        folder="nq_open",
        local=nq,
        filter="remove_whitespace",
        overrides=_SETTINGS,
    ),
)
