"""PIQA (Bisk et al., 2020): which of two procedures reaches an everyday goal."""

from pathlib import Path

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files
from gemmule.evals.benchmarks.benchmark import Benchmark, LocalData

_FIELDS = {"goal": str, "sol1": str, "sol2": str}


def piqa(folder: Path) -> LocalData:
    """Reads valid.jsonl, and valid-labels.lst with 0 or 1 for each of its lines."""
    questions, labels = folder / "valid.jsonl", folder / "valid-labels.lst"
    rows, golds = local_files.jsonl(questions, _FIELDS), local_files.lines(labels)
    local_files.same_length(questions, rows, labels, golds)
    for number, (row, gold) in enumerate(zip(rows, golds, strict=True), 1):
        if gold not in {"0", "1"}:
            raise DataError(f"{labels}:{number}: label {gold!r}; expected 0 or 1")
        row["label"] = int(gold)
    columns = (*_FIELDS, "label")
    asked = [{name: row[name] for name in columns} for row in rows]
    return LocalData({"piqa": {"validation": asked}}, [questions, labels])


BENCHMARKS = (
    Benchmark(
        name="piqa",
        title="PIQA",
        tasks=("piqa",),
        shots=0,
        metric="acc_norm",
        kind="choice",
        chance=0.5,
        folder="piqa",
        local=piqa,
    ),
)
